"""Data sets and test loaders of configs, with data sets that the processes of a machine share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode, instantiate
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from omegaconf import DictConfig

from ..config import target_of
from ..data import build_test_loader
from ..data.mapper import unused_annotation_keys
from ..data.shared_dataset import SharedDataset
from ..data.shared_loading import load_shared
from .data_check import check_images, explained, infinite_boxes


def instantiate_dataset(
    node: Any, mapper: Callable | None, what: str, *, is_checked: bool = True
) -> Any:
    """Instantiates the node ``dataset`` of a loader; all processes must call this together.

    Args:
        node: A node for Detectron2's ``get_detection_dataset_dicts`` is called in one process of
            each machine, see :func:`~atss_d2.data.shared_loading.load_shared`, which also checks
            its images. Any other is instantiated in every process.
        mapper: The mapper that the dicts are for, which decides what they must hold.
        what: Name of the data set in messages, "training" or "test".
        is_checked: Whether missing images are an error.

    Raises:
        DataError: Images are missing, or an annotation has no box.
    """
    if not isinstance(node, DictConfig) or target_of(node) is not get_detection_dataset_dicts:
        return instantiate(node)
    load = functools.partial(instantiate, node)
    return _load(load, mapper, what, is_checked=is_checked)


def load_training_set(cfg: CfgNode, mapper: Callable, *, is_checked: bool = True) -> Any:
    """Does the same for the training sets of a yaml config."""
    model, names = cfg.MODEL, cfg.DATASETS.TRAIN
    load = functools.partial(
        get_detection_dataset_dicts,
        names,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=model.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if model.KEYPOINT_ON else 0,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if model.LOAD_PROPOSALS else None,
    )
    return _load(load, mapper, "training", is_checked=is_checked)


def load_test_set_of(cfg: CfgNode, name: str, mapper: Callable) -> Any:
    """Does the same for a test set of a yaml config."""
    files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        files = [cfg.DATASETS.PROPOSAL_FILES_TEST[list(cfg.DATASETS.TEST).index(name)]]
    load = functools.partial(
        get_detection_dataset_dicts, [name], filter_empty=False, proposal_files=files
    )
    return _load(load, mapper, "test")


def _load(
    load: Callable[[], Any], mapper: Callable | None, what: str, *, is_checked: bool = True
) -> Any:
    def check(dicts: list) -> Sequence[str]:
        if not isinstance(mapper, DatasetMapper):  # others may read anything
            return ()
        if is_checked:
            check_images(dicts, what)
        return infinite_boxes(dicts, what)

    return load_shared(load, drop=unused_annotation_keys(mapper), check=check)


def load_test_set(cfg: DictConfig) -> tuple[Sequence[dict] | None, Callable | None]:
    """Returns the data set and mapper of ``dataloader.test``; None if they are of other kinds."""
    node = cfg.dataloader.get("test")
    if cfg.dataloader.get("evaluator") is None or node is None or "dataset" not in node:
        return None, None
    mapper = instantiate(node.get("mapper"))
    with explained(cfg, "test"):
        dataset = instantiate_dataset(node.dataset, mapper, "test")
    if not isinstance(dataset, (list, SharedDataset)):
        return None, None
    return dataset, mapper


def instantiate_test_loader(node: DictConfig) -> Any:
    """Instantiates ``dataloader.test`` with a data set that the processes of a machine share.

    Args:
        node: A node for our or Detectron2's function; any other is instantiated unchanged.
    """
    if target_of(node) not in (build_test_loader, build_detection_test_loader):
        return instantiate(node)
    arguments = loader_arguments(node)
    dataset = instantiate_dataset(node.dataset, arguments.get("mapper"), "test")
    return target_of(node)(dataset=dataset, **arguments)


def loader_arguments(node: DictConfig) -> dict[str, Any]:
    """Instantiates the arguments of a loader other than its data set."""
    return {name: instantiate(node[name]) for name in node if name not in ("_target_", "dataset")}
