"""Tree crowns in aerial photographs: trains on a CPU in minutes.

    python train_net.py --config-file configs/demo/atss_mobilenetv2_trees.py

`make demo` runs it and draws the pictures; docs/demo.md has the results.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

from atss_d2.data import BoxDatasetMapper, build_test_loader
from atss_d2.data.augmentation import RandomSquareCrop, ResizeByFactor
from atss_d2.engine import BackboneLRFactor, build_train_loader
from atss_d2.engine.evaluation import COCOEvaluatorWithAR

from ..common.models.atss_mobile import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

model.num_classes = 1
model.test_nms_thresh = 0.45  # crowns overlap less than COCO's objects

# Crowns are 10 to 100 px wide: enlarged 1.5 times they fit the anchors of P3 and P4 (64, 128 px).
_factor = 1.5
_crop = 256

dataloader = dict(
    train=L(build_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="trees_train"),
        mapper=L(BoxDatasetMapper)(
            is_train=True,
            min_visible=0.3,
            augmentations=[
                L(RandomSquareCrop)(min_size=int(_crop / 1.3), max_size=int(_crop * 1.3)),
                L(T.RandomFlip)(horizontal=True),
                L(T.RandomFlip)(horizontal=False, vertical=True),
                L(T.RandomRotation)(angle=[0, 90], sample_style="choice"),
                L(T.RandomBrightness)(intensity_min=0.7, intensity_max=1.3),
                L(T.RandomContrast)(intensity_min=0.7, intensity_max=1.3),
                L(T.RandomSaturation)(intensity_min=0.6, intensity_max=1.4),
                L(T.Resize)(shape=[int(_crop * _factor)] * 2),
            ],
            image_format="${model.input_format}",
        ),
        total_batch_size=4,
        num_workers=0,  # the cores are busy with the model
    ),
    test=L(build_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="trees_val", filter_empty=False),
        mapper=L(BoxDatasetMapper)(
            is_train=False,
            augmentations=[L(ResizeByFactor)(factor=_factor)],
            image_format="${model.input_format}",
        ),
        num_workers=0,
    ),
    evaluator=L(COCOEvaluatorWithAR)(
        dataset_name="${..test.dataset.names}",
        output_dir="${train.output_dir}/inference",
    ),
)

optimizer.lr = 1e-3
optimizer.params.lr_factor_func = L(BackboneLRFactor)(factor=0.3)

train.update(
    init_checkpoint="atss_d2://pretrained/mobilenet_v2.pth",
    output_dir="output/demo",
    max_iter=700,
    eval_period=100,
    log_period=10,
    channels_last=True,
    # A batch may have almost no crowns; its losses, divided by so few positives, would throw the
    # weights off course.
    clip_gradients=dict(enabled=True, max_norm=5.0),
    ema=dict(enabled=True, decay=0.995),
    checkpointer=dict(period=100, max_to_keep=2),
)
