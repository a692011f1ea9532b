"""Makes training give the same bits in every run on the same kind of device."""

from __future__ import annotations

import os

import torch
from detectron2.config import CfgNode
from omegaconf import DictConfig
from torch import nn

from ..config import ConfigError, by_kind, view_of

__all__ = ["check_determinism", "use_determinism"]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def use_determinism(cfg: DictConfig | CfgNode) -> None:
    """Chooses torch's deterministic algorithms in this process, if the config asks for them.

    That is ``train.deterministic``, in yaml ``MODEL.ATSS.TRAIN.DETERMINISTIC``: False, True (an
    operator without a deterministic algorithm is an error) or "warn" (it is used, with a warning).
    Must be called before the first operation on a GPU.

    Raises:
        ConfigError: The value is another one.
    """
    value = _value(cfg)
    if not value:
        return
    # As torch asks for; read when the first matrices are multiplied.
    os.environ.setdefault(_CUBLAS, ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=value == "warn")


def check_determinism(cfg: DictConfig | CfgNode, model: nn.Module) -> None:
    """Refuses deformable convolutions on a GPU: torch does not know that their gradient varies.

    Raises:
        ConfigError: The model has them, and the config asks for strict determinism.
    """
    if _value(cfg) is not True or next(model.parameters()).device.type == "cpu":
        return
    # Of Detectron2 and of this project.
    if any("Deform" in type(x).__name__ for x in model.modules()):
        raise ConfigError(
            f"{_key(cfg)} is True, but the gradient of deformable convolutions sums in any order "
            "on a GPU: set it to 'warn' (in yaml to False), for runs that are equal up to rounding"
        )


def _key(cfg: DictConfig | CfgNode) -> str:
    return by_kind(cfg, lazy="train.deterministic", yaml="MODEL.ATSS.TRAIN.DETERMINISTIC")


def _value(cfg: DictConfig | CfgNode) -> bool | str:
    value = view_of(cfg).get(_key(cfg))
    if value not in (None, False, True, "warn"):
        raise ConfigError(f"{_key(cfg)} must be True, False or 'warn', got {value!r}")
    return value or False
