"""Loads, maps and checks data sets; ``embedded/`` has the demo's data."""

from .embedded import (
    dataset_root,
    prepare_pretrained,
    prepare_shapes,
    prepare_trees,
    register_datasets,
)
from .errors import DataError
from .mapper import BoxDatasetMapper
from .registration import register_coco
from .test_loader import build_test_loader

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
