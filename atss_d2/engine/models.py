"""Builds a LazyConfig's model, loads its weights, wraps it for autocast or TTA."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from omegaconf import DictConfig
from torch import nn

from ..checkpoint import SafeCheckpointer
from ..config import ConfigError, by_kind, resolve_device, view_of
from ..config.arguments import node_name
from ..modeling import DenseMatcher

logger = logging.getLogger(__name__)

_COMPILED = ("backbone", "head", "proposal_generator.rpn_head")
_AUTOCAST_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def build_model(cfg: DictConfig) -> nn.Module:
    """Instantiates ``model`` on ``train.device`` (without weights from a checkpoint).

    With ``train.channels_last``, the channels of a pixel are contiguous in memory, which gives the
    same results and is faster on many CPUs, and on GPUs under AMP. With ``train.compile.enabled``,
    backbone and head (in an R-CNN that of the RPN) are compiled at their first call; the other keys
    of ``train.compile`` are arguments of ``torch.compile``.

    Raises:
        ConfigError: A class rejects its value under ``model``.
    """
    try:
        model = instantiate(cfg.model)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"the model cannot be built: {error}") from error
    model = model.to(resolve_device(cfg.train.device))
    if cfg.train.get("channels_last", False):
        model = model.to(memory_format=torch.channels_last)
    if is_enabled(cfg, "compile"):
        options = {name: value for name, value in cfg.train.compile.items() if name != "enabled"}
        for name, part in model.named_modules():
            if name in _COMPILED:
                part.compile(**options)  # in place: parameters keep their names
    return model


def check_device(model: nn.Module) -> None:
    """Checks that the rules of sample selection can run on the device of a model to train.

    Raises:
        ConfigError: They cannot.
    """
    device = getattr(model, "device", None)
    if device is None or device.type != "mps":
        return
    names = ("matcher", "anchor_matcher")  # of a detector, of an RPN
    rules = [getattr(part, name, None) for part in model.modules() for name in names]
    if any(isinstance(rule, DenseMatcher) for rule in rules):
        raise ConfigError(
            "training does not run on the device 'mps', which has no float64 for the selection of "
            "samples: set train.device=cpu (MODEL.DEVICE in yaml); detection does not need it"
        )


def check_warm_up(cfg: DictConfig | CfgNode, model: nn.Module) -> None:
    """Warns if the rule of a model that follows a warm-up would never select samples."""
    node = "model.matcher"
    matcher = getattr(model, "matcher", None)
    if matcher is None:
        node = "model.proposal_generator.anchor_matcher"
        matcher = getattr(getattr(model, "proposal_generator", None), "anchor_matcher", None)
    num_iterations = getattr(matcher, "warm_up_iterations", 0)
    view = view_of(cfg)
    max_iter = view.get(view.max_iter_key)
    if 0 < max_iter <= num_iterations:
        key = f"MODEL.ATSS.{node_name(type(matcher))}.WARM_UP_ITERATIONS"
        key = by_kind(cfg, lazy=f"{node}.warm_up_iterations", yaml=key)
        logger.warning(
            f"{type(matcher).__name__} never selects samples: {key} is {num_iterations}, but there "
            f"are only {max_iter} iterations. A third, as in the paper, is {max_iter // 3}"
        )


def build_model_with_tta(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """Instantiates ``test_time_augmentation``, a config without ``model``, around a model."""
    cfg = copy.deepcopy(cfg)  # its node gets the model
    cfg.test_time_augmentation.model = model
    return instantiate(cfg.test_time_augmentation)


def load_weights(model: nn.Module, path: str) -> dict[str, Any]:
    """Loads a checkpoint into a model for use without further training.

    Args:
        model: A model with the same number of classes as the file; :func:`build_model` returns one
            with random weights.
        path: As for :class:`SafeCheckpointer`.

    Returns:
        The other contents of the file, such as ``categories``.

    Raises:
        CheckpointNotFoundError: The file does not exist or cannot be downloaded; the message names
            it.
        CheckpointError: The file would execute code, is damaged, does not fit the model or lacks
            some of its weights; or ``path`` is ``""``.
    """
    return SafeCheckpointer(model).load_for_use(path)


def autocast_dtype(cfg: DictConfig) -> torch.dtype:
    """Returns the dtype that ``train.amp.dtype`` names.

    Raises:
        ValueError: It is neither "float16" nor "bfloat16".
    """
    name = cfg.train.amp.get("dtype", "float16")
    if name not in _AUTOCAST_DTYPES:
        raise ValueError(f'train.amp.dtype must be "float16" or "bfloat16", got "{name}"')
    return _AUTOCAST_DTYPES[name]


class AutocastModel(nn.Module):
    """Runs a model's forward pass under autocast, and its backward pass outside."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        # inference_on_dataset restores the mode that it finds here.
        self.train(model.training)
        self.model = model
        self._dtype = dtype
        self._device_type = next(model.parameters()).device.type

    def forward(self, batched_inputs):
        with torch.autocast(self._device_type, dtype=self._dtype):
            return self.model(batched_inputs)


def is_enabled(cfg: DictConfig, name: str) -> bool:
    """Returns ``train.<name>.enabled``; False if the config does not have this node."""
    return bool(cfg.train.get(name, {}).get("enabled", False))
