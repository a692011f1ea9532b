"""What a node of a LazyConfig names."""

from __future__ import annotations

from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig


def target_of(node: DictConfig) -> Any:
    """Returns the class or function in ``_target_``, which may be its name; None without one."""
    return located(node.get("_target_"))


def located(target: Any) -> Any:
    """Returns a class or function given by itself or by its name."""
    return locate(target) if isinstance(target, str) else target
