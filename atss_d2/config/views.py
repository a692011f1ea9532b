"""Reads values from a config in the same way for LazyConfigs and yaml configs.

Only this module tells the two kinds apart: :func:`view_of` for values, :func:`by_kind` for
functions.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from ..data.categories import Categories, parse_categories
from .files import ConfigError, load_config
from .overrides import apply_overrides, apply_yaml_overrides

logger = logging.getLogger(__name__)

_Choice = TypeVar("_Choice")

_LAZY_KEYS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
# Meta-architecture -> yaml key of its number of classes.
_YAML_NUM_CLASSES = {
    "ATSS": "MODEL.ATSS.NUM_CLASSES",
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "RetinaNetWithMatcher": "MODEL.RETINANET.NUM_CLASSES",
    "FCOS": "MODEL.FCOS.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
}


def by_kind(cfg: DictConfig | CfgNode, *, lazy: _Choice, yaml: _Choice) -> _Choice:
    """Returns ``lazy`` for a LazyConfig, ``yaml`` for a yaml config."""
    return yaml if isinstance(cfg, CfgNode) else lazy


def view_of(cfg: DictConfig | CfgNode) -> View:
    """Returns the view of a config; setting a value of the view sets it in the config."""
    return by_kind(cfg, lazy=LazyView, yaml=YamlView)(cfg)


def load_view(
    config: str | Path | DictConfig | CfgNode,
    overrides: Sequence[str] = (),
    *,
    device: str | None = None,
) -> View:
    """Loads a config and applies overrides.

    Args:
        config: As for :func:`load_config`. A config is copied.
        overrides: ``key=value`` for a LazyConfig; alternating ``KEY``, ``value`` for yaml.
        device: Replaces the config's device.

    Raises:
        FileNotFoundError, ConfigError, ValueError: As for :func:`load_config`.
        KeyError, ValueError: As for :func:`apply_overrides` and :func:`apply_yaml_overrides`.
    """
    cfg = load_config(config)
    view = view_of(copy.deepcopy(cfg) if cfg is config else cfg)
    view.apply(overrides, device)
    return view


def resolve_device(name: str) -> str:
    """Returns ``name``, or "cpu" if it asks for a GPU and there is none.

    Raises:
        ConfigError: There are GPUs, but not so many.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        logger.info("No GPU is available: running on the CPU")
        return "cpu"
    number = name.partition("cuda:")[2]
    if number.isdigit() and int(number) >= (found := torch.cuda.device_count()):
        raise ConfigError(
            f"the device is '{name}', but this machine has {found}: cuda:0 to cuda:{found - 1}"
        )
    return name


class View:
    """The values of a config of either kind.

    Attributes:
        cfg: The config.
        more_detections: An override that raises the number of detections per image, as typed.
        max_iter_key: Key of the number of iterations.
        results_by_dataset: Whether results of several test sets are kept apart by their names.
        missing_keys: Keys that Detectron2 needs but the config does not define.
        num_classes_key: Key of the model's number of classes; ``""`` if unknown.
        test_augmentations: The augmentations of test images.
        evaluation_lacks: What the config lacks for an evaluation; ``""`` if nothing.
        prediction_settings: The parts of the config that decide detections, as JSON values.
    """

    output_dir_key: str
    weights_key: str
    input_format_key: str
    dataset_keys: ClassVar[dict[str, str]]
    categories_key: str
    device_key: str
    more_detections: str
    max_iter_key: str
    results_by_dataset: bool
    missing_keys: Sequence[str] = ()

    def __init__(self, cfg: DictConfig | CfgNode) -> None:
        self.cfg = cfg

    def get(self, key: str) -> Any:
        """Returns the value of a dotted key; None if the config does not have it."""
        node = self.cfg
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    @property
    def output_dir(self) -> str:
        """The output folder."""
        return self.get(self.output_dir_key)

    @property
    def weights(self) -> str:
        """The checkpoint that the config names; ``""`` for none."""
        return self.get(self.weights_key)

    @property
    def input_format(self) -> str:
        """The channel order of the model's input."""
        return self.get(self.input_format_key)

    @property
    def num_classes(self) -> int | None:
        """The model's number of classes; None if unknown."""
        value = self.get(self.num_classes_key)
        return value if isinstance(value, int) else None

    @property
    def categories(self) -> Categories:
        """The categories in the config; ``[]`` for none, as in a yaml config without our keys.

        Raises:
            ValueError: The value of the key is not a list of categories.
        """
        value = self.get(self.categories_key)
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        return parse_categories(value, source=self.categories_key)

    @categories.setter
    def categories(self, categories: Categories) -> None:
        self._set_categories(categories)

    def dataset_names(self, *splits: str) -> list[str]:
        """Returns the data set names of ``splits`` ("train", "test"), without duplicates."""
        names: list[str] = []
        for split in splits:
            group = self.get(self.dataset_keys[split]) or []
            names += [group] if isinstance(group, str) else list(group)
        return list(dict.fromkeys(names))

    def freeze(self) -> None:
        """Forbids later changes to a yaml config, as Detectron2's train_net.py does."""

    def import_targets(self) -> None:
        """Imports the modules that a LazyConfig's targets are in, as these may register data sets.

        Executing a ``.py`` config imports them; reading the same config from yaml does not.
        """


class LazyView(View):
    """A LazyConfig."""

    output_dir_key = "train.output_dir"
    weights_key = "train.init_checkpoint"
    input_format_key = "dataloader.test.mapper.image_format"
    dataset_keys: ClassVar = {
        split: f"dataloader.{split}.dataset.names" for split in ("train", "test")
    }
    categories_key = "categories"
    device_key = "train.device"
    more_detections = "model.max_detections_per_image=1000"
    max_iter_key = "train.max_iter"
    results_by_dataset = False

    def apply(self, overrides: Sequence[str], device: str | None = None) -> None:
        """Applies overrides and sets the device, which is resolved when the model is built."""
        apply_overrides(self.cfg, overrides)
        if device is not None:
            self.cfg.train.device = device

    @property
    def num_classes_key(self) -> str:
        is_rcnn = self.get("model.roi_heads") is not None
        return "model.roi_heads.num_classes" if is_rcnn else "model.num_classes"

    @property
    def missing_keys(self) -> list[str]:
        return [key for key in _LAZY_KEYS if key not in self.cfg]

    @property
    def test_augmentations(self) -> list[Any]:
        return list(instantiate(self.cfg.dataloader.test.mapper.augmentations))

    @property
    def evaluation_lacks(self) -> str:
        return "" if self.get("dataloader.evaluator") is not None else "dataloader.evaluator"

    @property
    def prediction_settings(self) -> dict[str, Any]:
        mapper = self.cfg.dataloader.test.mapper
        parts = {
            "model": self.cfg.model,
            "augmentations": mapper.augmentations,
            "image_format": mapper.image_format,
        }
        return _plain({key: _container(value) for key, value in parts.items()})

    def _set_categories(self, categories: Categories) -> None:
        self.cfg.categories = categories

    def import_targets(self) -> None:
        nodes = [OmegaConf.to_container(self.cfg, resolve=False)]
        while nodes:
            node = nodes.pop()
            if isinstance(node, list):
                nodes += node
            target = node.get("_target_") if isinstance(node, dict) else None
            nodes += node.values() if isinstance(node, dict) else ()
            if isinstance(target, str) and not target.startswith(("atss_d2.", "detectron2.")):
                with contextlib.suppress(Exception):  # reported later, when the target is called
                    locate(target)


class YamlView(View):
    """A yaml config."""

    output_dir_key = "OUTPUT_DIR"
    weights_key = "MODEL.WEIGHTS"
    input_format_key = "INPUT.FORMAT"
    dataset_keys: ClassVar = {split: f"DATASETS.{split.upper()}" for split in ("train", "test")}
    categories_key = "MODEL.ATSS.CATEGORIES"
    device_key = "MODEL.DEVICE"
    more_detections = "MODEL.ATSS.MAX_DETECTIONS_PER_IMAGE 1000"
    max_iter_key = "SOLVER.MAX_ITER"
    results_by_dataset = True

    def apply(self, overrides: Sequence[str], device: str | None = None) -> None:
        """Applies overrides and sets the device to one available on this machine."""
        self.cfg.defrost()
        apply_yaml_overrides(self.cfg, overrides)
        self.cfg.MODEL.DEVICE = resolve_device(device or self.cfg.MODEL.DEVICE)

    @property
    def num_classes_key(self) -> str:
        return _YAML_NUM_CLASSES.get(self.cfg.MODEL.META_ARCHITECTURE, "")

    @property
    def test_augmentations(self) -> list[Any]:
        return [ResizeShortestEdge(self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)]

    @property
    def evaluation_lacks(self) -> str:
        return "" if self.cfg.DATASETS.TEST else "test set, set DATASETS.TEST"

    @property
    def prediction_settings(self) -> dict[str, Any]:
        parts = {"MODEL": dict(self.cfg.MODEL), "INPUT": self.cfg.INPUT, "TEST": self.cfg.TEST}
        for key in ("DEVICE", "WEIGHTS"):
            parts["MODEL"].pop(key, None)
        return _plain(parts)

    def _set_categories(self, categories: Categories) -> None:
        if self.get("MODEL.ATSS") is None:  # another model's config, without our keys
            return
        is_frozen = self.cfg.is_frozen()
        self.cfg.defrost()
        self.cfg.MODEL.ATSS.CATEGORIES = categories
        if is_frozen:
            self.cfg.freeze()

    def freeze(self) -> None:
        self.cfg.freeze()


def _container(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _plain(value: Any) -> Any:
    """Returns a value as JSON knows it; classes and functions by their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, functools.partial):
        return _plain([value.func, value.args, value.keywords])
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)
