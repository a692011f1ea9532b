"""Checkpoints: safe loading, atomic saving, and weights of other implementations."""

from ..config.renames import missing_name
from .agreement import convention_differences
from .checkpointer import SafeCheckpointer
from .conventions import CONVENTIONS, apply_convention
from .conversion import ConversionError, convert_state_dict
from .loading import CheckpointError, CheckpointNotFoundError, load_file
from .run_folder import find_checkpoint
from .saving import save_file
from .sources import check_checkpoint

__all__ = [
    "CONVENTIONS",
    "CheckpointError",
    "CheckpointNotFoundError",
    "ConversionError",
    "SafeCheckpointer",
    "apply_convention",
    "check_checkpoint",
    "convention_differences",
    "convert_state_dict",
    "find_checkpoint",
    "load_file",
    "save_file",
]


def __getattr__(name: str) -> None:
    raise missing_name(__name__, name)
