"""ATSS, ResNet-50-FPN, 90k iterations.

    python train_net.py --config-file configs/coco/atss_R_50_FPN_1x.py --num-gpus 8

Quoted COCO val2017 box AP: 39.3 (authors' release).
"""

from ..common.data.coco import dataloader
from ..common.models.atss import model
from ..common.optim import SGD as optimizer
from ..common.schedule import lr_multiplier_1x as lr_multiplier
from ..common.train import train

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
