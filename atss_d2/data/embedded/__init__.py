"""The demo's data: aerial photographs of trees, generated scenes, and a pretrained backbone."""

from .catalog import dataset_root, register_datasets
from .pretrained import prepare_pretrained
from .shapes import prepare_shapes
from .trees import prepare_trees

__all__ = [
    "dataset_root",
    "prepare_pretrained",
    "prepare_shapes",
    "prepare_trees",
    "register_datasets",
]
