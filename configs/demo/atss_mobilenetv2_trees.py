"""Tree crowns from the air, on a CPU in minutes: `make demo`."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from atss_d2.engine.optim import BackboneLRFactor
from atss_d2.modeling import TorchvisionBackbone
from atss_d2.data import AtssDatasetMapper

from ..common.data.constants import constants
from ..common.models.atss import model
from ..common.optim import AdamW as optimizer
from ..common.train import train

model.num_classes = 1
model.backbone = L(FPN)(
    bottom_up=L(TorchvisionBackbone)(name="mobilenet_v2"),
    in_features=["res3", "res4", "res5"],
    out_channels=96,
    top_block=L(LastLevelMaxPool)(),
)
