"""Checkpoints: safe loading, whole files, and weights of other implementations."""

from .agreement import recipe_differences
from .checkpointer import SafeCheckpointer
from .conversion import ConversionError, convert_state_dict
from .loading import CheckpointError, CheckpointNotFoundError, load_file
from .recipes import RECIPES, apply_recipe
from .saving import save_file
from .sources import check_checkpoint

__all__ = [
    "RECIPES",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConversionError",
    "SafeCheckpointer",
    "apply_recipe",
    "check_checkpoint",
    "convert_state_dict",
    "load_file",
    "recipe_differences",
    "save_file",
]
