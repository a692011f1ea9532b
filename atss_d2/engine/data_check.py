"""Do the data sets, the model and each other agree on the classes? Asked before training."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf

from ..data.categories import (
    Categories,
    categories_of_dataset,
    config_categories,
    set_config_categories,
)

# Meta-architecture -> yaml key of its number of classes.
_YAML_NUM_CLASSES = {
    "ATSS": "MODEL.ATSS.NUM_CLASSES",
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "RetinaNetWithMatcher": "MODEL.RETINANET.NUM_CLASSES",
    "FCOS": "MODEL.FCOS.NUM_CLASSES",
}


def check_categories(cfg: DictConfig | CfgNode) -> Categories:
    """Compares the categories of the training and test sets with each other and with the model.

    A data set whose categories are not known before it was loaded (registered by a function) is
    left out; call this again when it was.

    Args:
        cfg: A config of either kind. If it names no categories, those that were found are written
            into it, so that ``config.yaml`` has them.

    Returns:
        The categories, ``[]`` if unknown.

    Raises:
        FileNotFoundError: A data set's annotation file does not exist.
        ValueError: They do not agree; the message names the data set, the values and the key.
    """
    found: dict[str, Categories] = {}
    configured = config_categories(cfg)
    if configured:
        found["the config"] = configured
    for name in dataset_names(cfg):
        categories = categories_of_dataset(name)
        if categories:
            found[f"the data set '{name}'"] = categories
    if not found:
        return []
    (first, categories), *others = found.items()
    for source, other in others:
        _check_equal(first, categories, source, other)
    key, num_classes = num_classes_of(cfg)
    if num_classes is not None and num_classes != len(categories):
        assignment = f"{key} {len(categories)}" if key.isupper() else f"{key}={len(categories)}"
        raise ValueError(
            f"{key} is {num_classes}, but {first} has {_count(categories)} "
            f"({_some_names(categories)}): set {assignment}"
        )
    if not configured:
        # A data set registered by a function has no ids of its own, they count from 0.
        with_ids = [x for x in found.values() if [c["id"] for c in x] != list(range(len(x)))]
        categories = (with_ids or [categories])[0]
        set_config_categories(cfg, categories)
    return categories


def dataset_names(cfg: DictConfig | CfgNode) -> list[str]:
    """Names of the training sets, then of the test sets, each once."""
    if isinstance(cfg, CfgNode):
        groups = [cfg.DATASETS.TRAIN, cfg.DATASETS.TEST]
    else:
        keys = ("dataloader.train.dataset.names", "dataloader.test.dataset.names")
        groups = [OmegaConf.select(cfg, key, default=None) or [] for key in keys]
    names: list[str] = []
    for group in groups:
        names += [group] if isinstance(group, str) else list(group)
    return list(dict.fromkeys(names))


def num_classes_of(cfg: DictConfig | CfgNode) -> tuple[str, int | None]:
    """The key of the model's number of classes, and the number; None if it is not known."""
    if not isinstance(cfg, CfgNode):
        value = OmegaConf.select(cfg, "model.num_classes", default=None)
        return "model.num_classes", value if isinstance(value, int) else None
    key = _YAML_NUM_CLASSES.get(cfg.MODEL.META_ARCHITECTURE)
    if key is None:
        return "", None
    node = cfg
    for part in key.split("."):
        node = node.get(part)
        if node is None:
            return key, None
    return key, node


def _check_equal(first: str, categories: Categories, second: str, others: Categories) -> None:
    if len(categories) != len(others):
        raise ValueError(
            f"{first} has {_count(categories)} ({_some_names(categories)}), but {second} has "
            f"{len(others)} ({_some_names(others)}): both must list the same categories, also "
            "those without a box"
        )
    for index, (one, other) in enumerate(zip(categories, others)):
        # Ids may differ: Detectron2 maps those of each file to 0..K-1 in their order.
        if one["name"].strip().casefold() != other["name"].strip().casefold():
            raise ValueError(
                f"class {index} is '{one['name']}' (id {one['id']}) in {first}, but "
                f"'{other['name']}' (id {other['id']}) in {second}: both must list the same "
                "categories in the same order of ids"
            )


def _count(categories: Sequence) -> str:
    return f"{len(categories)} class{'es' if len(categories) != 1 else ''}"


def _some_names(categories: Categories) -> str:
    names = [category["name"] for category in categories]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
