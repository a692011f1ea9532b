"""Yaml keys derived from signatures.

Defaults live in one place, the signature of the class that uses them. The yaml (yacs) tree is
derived from those signatures: argument ``test_nms_thresh`` of :class:`atss_d2.ATSS` is the key
``MODEL.ATSS.TEST_NMS_THRESH``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any

from detectron2.config import CfgNode


def _arguments_with_default(function: Callable, skip: Collection[str]) -> dict[str, Any]:
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty and name not in skip
    }


def signature_to_cfg(function: Callable, skip: Collection[str] = ()) -> CfgNode:
    """Writes the arguments of a callable that have a default as a yacs node.

    Args:
        function: A function or class whose keyword arguments become keys.
        skip: Argument names to leave out (those that come from elsewhere in the cfg tree).

    Returns:
        Node with upper-case keys. yacs lets a key that holds None take a value of any type.
    """
    node = CfgNode()
    for name, default in _arguments_with_default(function, skip).items():
        node[name.upper()] = default
    return node


def cfg_to_kwargs(node: CfgNode, function: Callable, skip: Collection[str] = ()) -> dict[str, Any]:
    """Reads back what :func:`signature_to_cfg` wrote, as keyword arguments of ``function``."""
    return {name: node[name.upper()] for name in _arguments_with_default(function, skip)}


def add_atss_config(cfg: CfgNode) -> None:
    """Adds the keys of this project to a Detectron2 cfg: ``MODEL.ATSS`` and ``MODEL.TORCHVISION``.

    Nothing that Detectron2 defines is changed, so the same cfg still builds Detectron2's own
    models. Backbone, anchors, solver and data use Detectron2's keys; ``configs/yaml/`` has the
    values of the paper.

    Args:
        cfg: A cfg from ``detectron2.config.get_cfg()``, changed in place.
    """
    from ..modeling.atss import ATSS
    from ..modeling.build import config_node
    from ..modeling.torchvision_backbone import add_torchvision_config

    cfg.MODEL.ATSS = config_node(ATSS)
    add_torchvision_config(cfg)
