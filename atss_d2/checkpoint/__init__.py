"""Checkpoints: safe loading, whole files, and weights of other implementations."""

from .agreement import recipe_differences
from .checkpointer import SafeCheckpointer, check_checkpoint
from .conversion import ConversionError, convert_state_dict
from .loading import CheckpointError, load_file
from .recipes import RECIPES, apply_recipe
from .saving import save_file

__all__ = [
    "RECIPES",
    "CheckpointError",
    "ConversionError",
    "SafeCheckpointer",
    "apply_recipe",
    "check_checkpoint",
    "convert_state_dict",
    "load_file",
    "recipe_differences",
    "save_file",
]
