"""Replaces the sample selection of a model that a LazyConfig describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import LazyCall
from detectron2.modeling.proposal_generator import RPN
from omegaconf import DictConfig
from torch import nn

from ..config import located
from ..modeling.matchers import DenseMatcher
from .detector import replace_label_anchors
from .rpn import ATSSRPN


def build_with_matcher(
    *,
    model_class: str | Callable[..., nn.Module],
    matcher: DenseMatcher,
    anchor_scale: float | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Builds a detector and replaces its sample selection: the ``_target_`` of a changed node.

    Args:
        model_class: The class of the detector, or its name.
        matcher: As in :func:`use_matcher`.
        anchor_scale: As in :func:`use_matcher`.
        **kwargs: Arguments of ``model_class``.
    """
    return replace_label_anchors(located(model_class)(**kwargs), matcher, anchor_scale, {})


def change_node(
    node: DictConfig,
    matcher: type[DenseMatcher] | DictConfig | None,
    anchor_scale: float | None,
    options: dict[str, Any],
) -> DictConfig:
    """Sets or removes the matcher of a model's node; see :func:`use_matcher`."""
    if "_target_" not in node:
        raise TypeError(
            "use_matcher needs the node of a model, such as cfg.model, got one without _target_, "
            f"with the keys {', '.join(map(str, node))}"
        )
    is_changed = located(node._target_) is build_with_matcher
    if matcher is None:
        if is_changed:
            node._target_ = node.pop("model_class")
            node.pop("matcher")
            node.pop("anchor_scale", None)
        return node
    if not is_changed:
        _check_target(node)
    matcher = _matcher_node(node, matcher, options)
    if not is_changed:
        node.model_class = node._target_
        node._target_ = build_with_matcher
    node.matcher = matcher
    node.anchor_scale = anchor_scale
    return node


def _matcher_node(
    node: DictConfig, matcher: type[DenseMatcher] | DictConfig, options: dict[str, Any]
) -> DictConfig:
    if isinstance(matcher, DenseMatcher):
        name = type(matcher).__name__
        raise TypeError(
            f"a LazyConfig describes what is built later, got a built {name}: give the class with "
            f"its options, or LazyCall({name})(...)"
        )
    return LazyCall(matcher)(**options) if isinstance(matcher, type) else matcher.copy()


def _check_target(node: DictConfig) -> None:
    """Raises immediately the errors that building the model would raise."""
    target = located(node._target_)
    name = getattr(target, "__name__", target)
    generator = node.get("proposal_generator")
    rpn = target if generator is None else located(generator._target_)
    if isinstance(rpn, type) and issubclass(rpn, RPN):
        if issubclass(rpn, ATSSRPN):
            raise TypeError(
                f"{rpn.__name__} has a matcher of its own: set the key anchor_matcher of "
                "proposal_generator"
            )
        return
    if isinstance(target, type) and not hasattr(target, "label_anchors"):
        raise TypeError(
            "use_matcher works with Detectron2's RetinaNet, FCOS and R-CNNs with an RPN, and with "
            f"detectors like them, got {name}, which has no label_anchors"
        )
    if "matcher" in node:
        raise TypeError(f"{name} has a matcher of its own: set the key matcher of its node")
