"""Tree crowns with multi-scale testing: three scales, each with its mirror image.

    python train_net.py --config-file configs/demo/atss_mobilenetv2_trees_tta.py --eval-only \
        train.init_checkpoint=output/demo/model_final.pth

Evaluates the checkpoint of atss_mobilenetv2_trees without multi-scale testing and with it. It does
not pay off here, because training saw only one enlargement (docs/ablations.md).
"""

from detectron2.config import LazyCall as L

from atss_d2.modeling import DenseDetectorWithTTA

from .atss_mobilenetv2_trees import dataloader, lr_multiplier, model, optimizer, train

# The photographs of trees_val are 517 px high; training and the plain evaluation enlarge 1.5 times.
test_time_augmentation = L(DenseDetectorWithTTA)(
    min_sizes=[650, 775, 900],
    merge="vote",
    max_detections_per_image=100,
)
