"""Our sample selection in Detectron2's own dense detectors: RetinaNet, FCOS, their subclasses.

:func:`use_atss` and :func:`use_matcher` replace ``label_anchors`` of a model, or change the node
of a model in a LazyConfig so that the built model has it replaced; :class:`RetinaNetWithMatcher`
is the form for yaml configs. Weights, checkpoints and inference stay as they are.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import nn

from ..modeling.matchers import ATSSMatcher, DenseMatcher
from .config_node import change_node
from .detector import replace_label_anchors
from .retinanet import RetinaNetWithMatcher

__all__ = ["RetinaNetWithMatcher", "use_atss", "use_matcher"]


def use_atss(
    model: nn.Module | DictConfig,
    *,
    topk: int = 9,
    anchor_scale: float | None = None,
    **options: Any,
) -> nn.Module | DictConfig:
    """Trains a Detectron2 RetinaNet or FCOS with adaptive training sample selection.

    Args:
        model: As in :func:`use_matcher`.
        topk: k, candidates per level and anchor of a location (9 in the paper).
        anchor_scale: As in :func:`use_matcher`.
        **options: Other arguments of :class:`ATSSMatcher`; ``num_anchors`` comes from the model.

    Returns:
        ``model``, changed in place.
    """
    return use_matcher(model, ATSSMatcher, anchor_scale=anchor_scale, topk=topk, **options)


def use_matcher(
    model: nn.Module | DictConfig,
    matcher: DenseMatcher | type[DenseMatcher] | DictConfig | None,
    *,
    anchor_scale: float | None = None,
    **options: Any,
) -> nn.Module | DictConfig:
    """Replaces the sample selection of a Detectron2 dense detector.

    Of a model, ``label_anchors`` is replaced for this one instance: parameters, ``state_dict`` and
    inference are the same as before; copies and pickles of the model have it replaced, too. If the
    model has Detectron2's own ``forward_training`` and anchors, the matcher is told the sizes of
    the feature maps, so that the host does not wait for a GPU. A node of a LazyConfig keeps all of
    its keys and gets a key ``matcher``.

    Detectron2's FCOS knows no ignored anchors and cannot regress to a box that does not contain the
    center of the anchor. Here, anchors that a matcher ignores have no classification loss, and
    positives whose center lies outside their box are ignored.

    Args:
        model: A :class:`RetinaNet`, an :class:`FCOS`, or another detector with
            ``label_anchors(anchors, gt_instances)`` of the same meaning; or the node of one in a
            LazyConfig.
        matcher: A matcher, or the class of one, which is built from ``options`` and from what the
            model determines (``num_anchors``, ``strides``). For a LazyConfig a class, or the node
            of a matcher. None takes back an earlier call.
        anchor_scale: Side of the anchors that the matcher sees, in strides; they are squares around
            the centers of the model's anchors, of which there must be one per location. Default: 8
            for FCOS, as in the paper; the model's own anchors otherwise.
        **options: Arguments of the matcher, if ``matcher`` is a class.

    Returns:
        ``model``, changed in place.

    Raises:
        TypeError: ``model`` is no such detector, or ``matcher`` no matcher.
        ValueError: Matcher and model do not fit each other; the message names the values.
    """
    if isinstance(matcher, type) and not issubclass(matcher, DenseMatcher):
        raise TypeError(f"matcher must be a DenseMatcher, got the class {matcher.__name__}")
    if options and not isinstance(matcher, type):
        raise TypeError(
            f"{', '.join(options)}: only the class of a matcher takes options, got "
            f"{type(matcher).__name__}"
        )
    change = change_node if isinstance(model, DictConfig) else replace_label_anchors
    return change(model, matcher, anchor_scale, options)
