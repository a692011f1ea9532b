"""Training and evaluation: Detectron2's trainer and hooks, driven by a LazyConfig."""

from .ema import EMAHook
from .optim import BackboneLRFactor
from .overrides import apply_overrides
from .trainer import build_model, do_test, do_train, load_weights, resolve_device

__all__ = [
    "BackboneLRFactor",
    "EMAHook",
    "apply_overrides",
    "build_model",
    "do_test",
    "do_train",
    "load_weights",
    "resolve_device",
]
