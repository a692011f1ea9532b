"""Trains and evaluates with Detectron2's trainers and hooks."""

from ..checkpoint import check_checkpoint
from ..config import apply_overrides, apply_yaml_overrides, resolve_device
from .data_check import check_categories, check_dataset_files
from .ema import EMAHook
from .memory import keep_freed_memory
from .models import build_model, load_weights
from .nonfinite import NonFiniteError
from .optim import BackboneLRFactor
from .output_folder import claimed_folder
from .replay import Replayed, replay
from .resuming import choose_checkpoint
from .same_start import same_checkpoint, same_weights
from .setup import default_setup, leave_process_group
from .testing import do_test
from .train_loader import build_train_loader
from .trainer import do_train
from .yaml_trainer import Trainer

__all__ = [
    "BackboneLRFactor",
    "EMAHook",
    "NonFiniteError",
    "Replayed",
    "Trainer",
    "apply_overrides",
    "apply_yaml_overrides",
    "build_model",
    "build_train_loader",
    "check_categories",
    "check_checkpoint",
    "check_dataset_files",
    "choose_checkpoint",
    "claimed_folder",
    "default_setup",
    "do_test",
    "do_train",
    "keep_freed_memory",
    "leave_process_group",
    "load_weights",
    "replay",
    "resolve_device",
    "same_checkpoint",
    "same_weights",
]
