"""Our sample selection in Detectron2's own detectors: RetinaNet, FCOS, R-CNNs, their subclasses.

:func:`use_atss` and :func:`use_matcher` replace ``label_anchors`` of a model, or change a model's
node in a LazyConfig so that the built model has it replaced; :class:`RetinaNetWithMatcher` does
this for yaml configs. Weights, checkpoints and inference do not change. :class:`ATSSRPN` is a
region proposal network with our rules and, on request, our losses.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import nn

from ..modeling.matchers import ATSSMatcher, DenseMatcher
from .config_node import change_node
from .detector import replace_label_anchors
from .retinanet import RetinaNetWithMatcher
from .roi_heads import ProbabilisticCascadeROIHeads
from .rpn import ATSSRPN
from .rpn_head import ATSSRPNHead

__all__ = [
    "ATSSRPN",
    "ATSSRPNHead",
    "ProbabilisticCascadeROIHeads",
    "RetinaNetWithMatcher",
    "use_atss",
    "use_matcher",
]


def use_atss(
    model: nn.Module | DictConfig,
    *,
    topk: int = 9,
    anchor_scale: float | None = None,
    **options: Any,
) -> nn.Module | DictConfig:
    """Trains a Detectron2 RetinaNet, FCOS or RPN with adaptive training sample selection.

    Args:
        model: As in :func:`use_matcher`.
        topk: k, candidates per level for each anchor of a location (9 in the paper).
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
    """Replaces the sample selection of a Detectron2 dense detector, or of the RPN of an R-CNN.

    In a model, ``label_anchors`` is replaced on this instance only: parameters, ``state_dict`` and
    inference do not change, and copies and pickles of the model keep the replacement. If the model
    uses Detectron2's own ``forward_training`` and anchors, the matcher is given the sizes of the
    feature maps, so that the host does not wait for a GPU. A LazyConfig node keeps all of its keys
    and gets a key ``matcher``.

    In an R-CNN, ``label_and_sample_anchors`` of its RPN is replaced; sampling and losses stay.

    Detectron2's FCOS has no ignored anchors and cannot regress to a box that does not contain the
    anchor's center. Here, anchors that a matcher ignores get no classification loss, and positives
    whose center lies outside their box are ignored.

    Args:
        model: A :class:`RetinaNet`, an :class:`FCOS`, or another detector with an equivalent
            ``label_anchors(anchors, gt_instances)``; a :class:`GeneralizedRCNN`, another model
            whose ``proposal_generator`` is an :class:`RPN`, or an RPN; or the node of a model in a
            LazyConfig.
        matcher: A matcher, or a matcher class, which is built from ``options`` and from what the
            model determines (``num_anchors``, ``strides``). For a LazyConfig, a class or the node
            of a matcher. None restores the model's own rule.
        anchor_scale: Side, in strides, of the square anchors that the matcher sees. They are
            centered on the model's anchors, and the model must have one anchor per location.
            Default: 8 for FCOS, as in the paper; otherwise the matcher sees the model's own
            anchors.
        **options: Arguments of the matcher, if ``matcher`` is a class.

    Returns:
        ``model``, changed in place.

    Raises:
        TypeError: ``model`` is not such a detector, or ``matcher`` is not a matcher.
        ValueError: The matcher does not fit the model; the message names the values.
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
