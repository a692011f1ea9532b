"""The embedded data sets, their registration in Detectron2, and the dataset mapper."""

from .catalog import dataset_root, register_datasets
from .download import DataError
from .mapper import BoxDatasetMapper
from .pretrained import prepare_pretrained
from .registration import register_coco
from .shapes import prepare_shapes
from .test_loader import build_test_loader
from .trees import prepare_trees

register_datasets()

__all__ = [
    "BoxDatasetMapper",
    "DataError",
    "build_test_loader",
    "dataset_root",
    "prepare_pretrained",
    "prepare_shapes",
    "prepare_trees",
    "register_coco",
]
