"""Your data, a small model for CPUs: MobileNetV2, shorter side 320.

    python train_net.py --config-file configs/custom/atss_mobilenetv2.py

Register your data set first, and set `model.num_classes` and the names `my_train` and `my_val`
below to match it: `python tools/start_project.py` writes a config that does this for your files,
and docs/custom_dataset.md shows how to do it by hand. The backbone starts from ImageNet.
"""

from detectron2.config import LazyCall as L

from atss_d2.engine import BackboneLRFactor

from ..common.data.custom import dataloader
from ..common.models.atss_mobile import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

model.num_classes = 1

dataloader.train.dataset.names = "my_train"
dataloader.train.mapper.augmentations[0].update(short_edge_length=[256, 384], max_size=640)
dataloader.train.total_batch_size = 4
dataloader.test.dataset.names = "my_val"
dataloader.test.mapper.augmentations[0].update(short_edge_length=320, max_size=533)
dataloader.train.num_workers = dataloader.test.num_workers = 0  # the cores are busy with the model

optimizer.lr = 1e-3  # at batch 4
optimizer.params.lr_factor_func = L(BackboneLRFactor)(factor=0.3)

train.update(
    init_checkpoint="atss_d2://pretrained/mobilenet_v2.pth",
    output_dir="output/custom_mobilenetv2",
    max_iter=1000,
    eval_period=200,
    channels_last=True,
    # A batch may have almost no objects; its losses, divided by so few positives, would throw the
    # weights off course.
    clip_gradients=dict(enabled=True, max_norm=5.0),
    ema=dict(enabled=True, decay=0.995),
    checkpointer=dict(period=200, max_to_keep=2),
)
train.best_checkpoint.enabled = True  # model_best.pth
train.report.enabled = True  # learning curve and pictures, at the end
