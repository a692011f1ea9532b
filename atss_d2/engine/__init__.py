"""Training and evaluation: Detectron2's trainer and hooks, driven by a LazyConfig."""

from ..checkpoint import check_checkpoint
from .ema import EMAHook
from .optim import BackboneLRFactor
from .overrides import apply_overrides, apply_yaml_overrides
from .trainer import (
    build_model,
    default_setup,
    do_test,
    do_train,
    load_weights,
    resolve_device,
)

__all__ = [
    "BackboneLRFactor",
    "EMAHook",
    "apply_overrides",
    "apply_yaml_overrides",
    "build_model",
    "check_checkpoint",
    "default_setup",
    "do_test",
    "do_train",
    "load_weights",
    "resolve_device",
]
