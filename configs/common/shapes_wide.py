"""Turns a COCO recipe into the small experiment of ablation_shapes.py.

configs/demo/gfl_shapes_wide.py shows how.
"""

from .ablation_shapes import dataloader, lr_multiplier, optimizer
from .ablation_shapes import model as _model
from .ablation_shapes import train as _train


def shrink(model, train):
    """Gives a model the small backbone and head, and ``train`` the short schedule."""
    model.backbone = _model.pop("backbone")
    model.merge_with(_model)
    train.merge_with(_train)
