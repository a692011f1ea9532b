"""ATSS on the generated scenes of the ablation study, with multi-scale testing.

    python train_net.py --config-file configs/demo/atss_mobilenetv2_shapes_wide_tta.py \
        train.output_dir=output/shapes_wide
    python train_net.py --config-file configs/demo/atss_mobilenetv2_shapes_wide_tta.py --eval-only \
        train.init_checkpoint=output/shapes_wide/model_final.pth

The second command evaluates without multi-scale testing, then with three scales, each with its
mirror image.
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import DenseDetectorWithTTA

from ..ablations.table3.retinanet_atss import model, train
from ..common.ablation_shapes import dataloader, lr_multiplier, optimizer
from ..common.ablation_shapes import model as _model
from ..common.ablation_shapes import train as _train

# The row that the paper's other tables start from, adapted to the generated scenes.
model.backbone = _model.pop("backbone")
model.merge_with(_model)
train.merge_with(_train)

# Images have shorter sides of 240 to 272 px.
test_time_augmentation = L(DenseDetectorWithTTA)(
    min_sizes=[192, 256, 320],
    merge="vote",
    max_detections_per_image=100,
)
