"""The embedded data sets, their registration in Detectron2, and the dataset mapper."""

from .catalog import dataset_root, register_datasets
from .download import DataError
from .mapper import BoxDatasetMapper
from .pretrained import prepare_pretrained
from .shapes import prepare_shapes
from .trees import prepare_trees

register_datasets()

__all__ = [
    "BoxDatasetMapper",
    "DataError",
    "dataset_root",
    "prepare_pretrained",
    "prepare_shapes",
    "prepare_trees",
]
