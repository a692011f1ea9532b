"""Tree crowns in aerial photographs: trains on a CPU in minutes.

    python train_net.py --config-file configs/demo/atss_mobilenetv2_trees.py

`make demo` runs it and draws the pictures; what it reaches is in docs/demo.md.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from atss_d2.data import MinVisibleDatasetMapper
from atss_d2.data.augmentation import ResizeByFactor
from atss_d2.engine.evaluation import COCOEvaluatorWithAR

from ..common.models.atss_mobile import model
from ..common.optim import AdamW as optimizer
from ..common.train import train

model.num_classes = 1

# Crowns are 10 to 100 px wide; crops are enlarged so that they fit the anchors of P3 and P4.
_crop, _factor = 320, 1.5

dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="trees_train"),
        mapper=L(MinVisibleDatasetMapper)(
            is_train=True,
            min_visible=0.3,
            augmentations=[
                L(T.RandomCrop)(crop_type="absolute_range", crop_size=[256, 400]),
                L(T.Resize)(shape=[480, 480]),
            ],
            image_format="${model.input_format}",
        ),
        total_batch_size=4,
        num_workers=0,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="trees_val", filter_empty=False),
        mapper=L(MinVisibleDatasetMapper)(
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

train.max_iter = 500
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=50 / train.max_iter,
    warmup_method="linear",
    warmup_factor=0.02,
)
train.update(
    init_checkpoint="atss_d2://pretrained/mobilenet_v2.pth",
    output_dir="output/demo",
    eval_period=100,
    log_period=10,
    ema=dict(enabled=True, decay=0.99),
    checkpointer=dict(period=100, max_to_keep=2),
)
