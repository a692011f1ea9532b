"""Detectron2's recipe for its R-CNNs, with our loaders: see configs/rcnn/."""

from detectron2.model_zoo import get_config

from .data.coco import dataloader
from .train import train

optimizer = get_config("common/optim.py").SGD
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_1x
dataloader.train.mapper.augmentations[0].update(
    short_edge_length=[640, 672, 704, 736, 768, 800], sample_style="choice"
)
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


def zoo_model(name):
    """Returns a model of Detectron2's model zoo, with the frozen layers of its recipes."""
    model = get_config(f"common/models/{name}.py").model
    model.backbone.bottom_up.freeze_at = 2
    return model


def without_masks(model):
    """Makes Faster R-CNN of Mask R-CNN."""
    for name in ("mask_in_features", "mask_pooler", "mask_head"):
        model.roi_heads.pop(name)
    return model
