"""ATSS on the generated scenes of the ablation study, with multi-scale testing.

    python train_net.py --config-file configs/demo/atss_mobilenetv2_shapes_wide_tta.py \
        train.output_dir=output/shapes_wide
    python train_net.py --config-file configs/demo/atss_mobilenetv2_shapes_wide_tta.py --eval-only \
        train.init_checkpoint=output/shapes_wide/model_final.pth

The second command evaluates without and with three scales, each with its mirror image.
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import DenseDetectorWithTTA
from atss_d2.study import load_row_config, select_rows

# The row that the other tables of the paper start from, laid out for the generated scenes.
_row = load_row_config(select_rows(["table3/retinanet_atss"])[0], "shapes")
dataloader, lr_multiplier, model = _row.dataloader, _row.lr_multiplier, _row.model
optimizer, train = _row.optimizer, _row.train

# Images have shorter sides of 240 to 272 px.
test_time_augmentation = L(DenseDetectorWithTTA)(
    min_sizes=[192, 256, 320],
    merge="vote",
    max_detections_per_image=100,
)
