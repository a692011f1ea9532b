"""Your data, the paper's model: ResNet-50-FPN, shorter side 640 to 800, for a GPU.

    python train_net.py --config-file configs/custom/atss_R_50.py

Register your data set first, and set `model.num_classes` and the names `my_train` and `my_val`
below to match it: `python tools/start_project.py --model r50` writes a config that does this for
your files, and docs/custom_dataset.md shows how to do it by hand. Detectron2 downloads the ImageNet
backbone.
"""

from ..common.data.custom import dataloader
from ..common.models.atss import model
from ..common.optim import SGD as optimizer
from ..common.schedule import lr_multiplier_cosine as lr_multiplier
from ..common.train import train

model.num_classes = 1

dataloader.train.dataset.names = "my_train"
dataloader.test.dataset.names = "my_val"

optimizer.lr = 0.005  # the paper's 0.01 at batch 16, in proportion to batch 8

train.update(
    init_checkpoint="detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    output_dir="output/custom_R_50",
    max_iter=5000,
    eval_period=500,
    # A batch may have almost no objects; its losses, divided by so few positives, would throw the
    # weights off course.
    clip_gradients=dict(enabled=True, max_norm=10.0),
    checkpointer=dict(period=500, max_to_keep=2),
)
train.best_checkpoint.enabled = True  # model_best.pth
train.report.enabled = True  # learning curve and pictures, at the end
