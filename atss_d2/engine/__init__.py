"""Training and evaluation: Detectron2's trainer and hooks, driven by a LazyConfig."""

from ..checkpoint import check_checkpoint
from .data_check import check_categories, check_dataset_files
from .ema import EMAHook
from .memory import keep_freed_memory
from .optim import BackboneLRFactor
from .overrides import apply_overrides, apply_yaml_overrides
from .setup import default_setup, resolve_device
from .trainer import build_model, do_test, do_train, load_weights
from .yaml_trainer import Trainer

__all__ = [
    "BackboneLRFactor",
    "EMAHook",
    "Trainer",
    "apply_overrides",
    "apply_yaml_overrides",
    "build_model",
    "check_categories",
    "check_checkpoint",
    "check_dataset_files",
    "default_setup",
    "do_test",
    "do_train",
    "keep_freed_memory",
    "load_weights",
    "resolve_device",
]
