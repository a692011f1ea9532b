"""Builds the parts of :class:`ATSS` from a yaml (yacs) cfg, and checks that parts fit each other.

The keys under ``MODEL.ATSS`` are the arguments of the classes, see :mod:`atss_d2.config`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from ..config import cfg_to_kwargs, signature_to_cfg
from .anchor_generator import ANCHOR_ARGS_WITH_OWN_KEY, ShiftedAnchorGenerator
from .backbones import FPN_ARGS_WITH_OWN_KEY, build_fpn_with_p6p7
from .box_coding import PointDistances, TwoSidedBox2BoxTransform, num_box_values
from .head import ATSSHead
from .matchers import (
    ATSSMatcher,
    CenterSamplingMatcher,
    DenseMatcher,
    IoUMatcher,
    ScaleRangeMatcher,
    TopKMatcher,
)

logger = logging.getLogger(__name__)

# Defaults of Detectron2's keys and ours.
_NUM_CLASSES = 80
_DETECTIONS_PER_IMAGE = 100
# Arguments that Detectron2's own cfg keys give, or that the rest of the cfg determines.
_ATSS_ARGS_FROM_ELSEWHERE = ("input_format", "vis_period", "criterion")
_HEAD_ARGS_FROM_ELSEWHERE = ("num_anchors", "num_box_values")
_MATCHER_ARGS_FROM_ELSEWHERE = ("num_anchors", "strides")

# Value of MODEL.ATSS.SAMPLE_SELECTION -> the node with the arguments, and the class.
MATCHERS = {
    "ATSSMatcher": ("MATCHER", ATSSMatcher),
    "IoUMatcher": ("IOU_MATCHER", IoUMatcher),
    "ScaleRangeMatcher": ("SCALE_RANGE_MATCHER", ScaleRangeMatcher),
    "CenterSamplingMatcher": ("CENTER_SAMPLING_MATCHER", CenterSamplingMatcher),
    "TopKMatcher": ("TOPK_MATCHER", TopKMatcher),
}


def _build_box2box_transform(
    *, weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0), clamp_both_sides: bool = False
) -> Box2BoxTransform | TwoSidedBox2BoxTransform:
    """Builds the coder of ``MODEL.ATSS.BOX2BOX_TRANSFORM``, whose keys its arguments are."""
    coder = TwoSidedBox2BoxTransform if clamp_both_sides else Box2BoxTransform
    return coder(weights=tuple(float(weight) for weight in weights))


# Value of MODEL.ATSS.BOX_CODER -> the node with the arguments, and what makes the coder.
BOX_CODERS = {
    "Box2BoxTransform": ("BOX2BOX_TRANSFORM", _build_box2box_transform),
    "PointDistances": ("POINT_DISTANCES", PointDistances),
}


def config_node(meta_architecture: type) -> CfgNode:
    """The yaml keys of the detector, ``MODEL.ATSS``, derived from the signatures.

    Args:
        meta_architecture: :class:`ATSS`, whose arguments with a default become keys.
    """
    node = signature_to_cfg(meta_architecture.__init__, skip=_ATSS_ARGS_FROM_ELSEWHERE)
    node.NUM_CLASSES = _NUM_CLASSES
    # Names of the classes, [{"id": ..., "name": ...}]; filled in from the data set by training.
    node.CATEGORIES = []
    node.HEAD = signature_to_cfg(ATSSHead, skip=_HEAD_ARGS_FROM_ELSEWHERE)
    node.FPN = signature_to_cfg(build_fpn_with_p6p7, skip=FPN_ARGS_WITH_OWN_KEY)
    node.ANCHOR_GENERATOR = signature_to_cfg(
        ShiftedAnchorGenerator.__init__, skip=ANCHOR_ARGS_WITH_OWN_KEY
    )
    node.SAMPLE_SELECTION = "ATSSMatcher"
    for key, matcher in MATCHERS.values():
        node[key] = signature_to_cfg(matcher, skip=_MATCHER_ARGS_FROM_ELSEWHERE)
    node.BOX_CODER = "Box2BoxTransform"
    for key, coder in BOX_CODERS.values():
        node[key] = signature_to_cfg(coder)
    return node


def build_matcher(cfg: CfgNode) -> DenseMatcher:
    """Builds the rule that ``MODEL.ATSS.SAMPLE_SELECTION`` names; its model binds it.

    Args:
        cfg: A cfg with ``MODEL.ATSS``.

    Raises:
        ValueError: There is no such rule; the message names those there are.
    """
    node = cfg.MODEL.ATSS
    key, matcher = _choose(MATCHERS, "SAMPLE_SELECTION", node)
    return matcher(**cfg_to_kwargs(node[key], matcher, skip=_MATCHER_ARGS_FROM_ELSEWHERE))


def _choose(choices: dict, key: str, node: CfgNode) -> tuple:
    if node[key] not in choices:
        raise ValueError(f"MODEL.ATSS.{key} must be one of {', '.join(choices)}, got '{node[key]}'")
    return choices[node[key]]


def detections_per_image(cfg: CfgNode) -> int:
    """Most detections per image, for which there are two keys.

    ``TEST.DETECTIONS_PER_IMAGE`` is Detectron2's, ``MODEL.ATSS.MAX_DETECTIONS_PER_IMAGE`` ours. The
    one that is not the default of both, 100, counts.

    Raises:
        ValueError: Both are set, to different numbers.
    """
    values = {"TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE}
    if "ATSS" in cfg.MODEL:
        node = cfg.MODEL.ATSS
        values["MODEL.ATSS.MAX_DETECTIONS_PER_IMAGE"] = node.MAX_DETECTIONS_PER_IMAGE
    changed = {key: value for key, value in values.items() if value != _DETECTIONS_PER_IMAGE}
    if len(set(changed.values())) > 1:
        settings = " and ".join(f"{key} {value}" for key, value in values.items())
        raise ValueError(f"{settings} are different numbers for the same thing: set only one")
    return next(iter(changed.values()), _DETECTIONS_PER_IMAGE)


def check_num_classes(cfg: CfgNode) -> None:
    """Looks for a number of classes that was set where only other models of Detectron2 read it.

    Raises:
        ValueError: ``MODEL.ATSS.NUM_CLASSES`` was left at its default, and another one was not.
    """
    num_classes = cfg.MODEL.ATSS.NUM_CLASSES
    for name in ("RETINANET", "FCOS", "ROI_HEADS"):
        other = cfg.MODEL.get(name, {}).get("NUM_CLASSES", _NUM_CLASSES)
        if other in (num_classes, _NUM_CLASSES):
            continue
        message = (
            f"MODEL.{name}.NUM_CLASSES is {other}, which ATSS does not read; its number of "
            f"classes, MODEL.ATSS.NUM_CLASSES, is {num_classes}"
        )
        if num_classes == _NUM_CLASSES:
            raise ValueError(f"{message}: set MODEL.ATSS.NUM_CLASSES {other}")
        logger.warning(message)


def build_parts(cfg: CfgNode, meta_architecture: type) -> dict:
    """The constructor arguments of :class:`ATSS` from ``MODEL.ATSS`` and Detectron2's own keys."""
    check_num_classes(cfg)
    node = cfg.MODEL.ATSS
    kwargs = cfg_to_kwargs(node, meta_architecture.__init__, skip=_ATSS_ARGS_FROM_ELSEWHERE)
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    names = kwargs["head_in_features"] or sorted(shapes, key=lambda name: shapes[name].stride)
    input_shape = [shapes[name] for name in names]
    anchor_generator = build_anchor_generator(cfg, input_shape)
    num_anchors = anchor_generator.num_anchors[0]
    coder_key, coder = _choose(BOX_CODERS, "BOX_CODER", node)
    coder = coder(**cfg_to_kwargs(node[coder_key], coder))
    return {
        **kwargs,
        "backbone": backbone,
        "head": ATSSHead(
            input_shape=input_shape,
            num_classes=node.NUM_CLASSES,
            num_anchors=num_anchors,
            num_box_values=num_box_values(coder),
            **cfg_to_kwargs(node.HEAD, ATSSHead, skip=_HEAD_ARGS_FROM_ELSEWHERE),
        ),
        "anchor_generator": anchor_generator,
        "box2box_transform": coder,
        "matcher": build_matcher(cfg),
        "num_classes": node.NUM_CLASSES,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "input_format": cfg.INPUT.FORMAT,
        "max_detections_per_image": detections_per_image(cfg),
        # A subclass may not know the argument.
        **({"vis_period": cfg.VIS_PERIOD} if cfg.VIS_PERIOD else {}),
    }


def check_parts(
    *,
    backbone_shapes: dict[str, ShapeSpec],
    head_in_features: Sequence[str],
    anchor_generator: nn.Module,
    head: nn.Module,
    matcher: DenseMatcher,
    box2box_transform,
    num_classes: int,
) -> None:
    """Checks that the parts of a detector fit each other, and binds the matcher to the others.

    Raises:
        ValueError: They do not; the message names the values.
    """
    missing = [name for name in head_in_features if name not in backbone_shapes]
    if missing:
        raise ValueError(
            f"head_in_features {missing} are not among the backbone's features "
            f"{list(backbone_shapes)}"
        )
    num_anchors = anchor_generator.num_anchors
    strides = [backbone_shapes[name].stride for name in head_in_features]
    if len(num_anchors) != len(strides) or list(anchor_generator.strides) != strides:
        raise ValueError(
            f"the anchor generator has strides {list(anchor_generator.strides)}, but the "
            f"features {list(head_in_features)} have strides {strides}"
        )
    for part, name in ((head, "head"), (matcher, "matcher")):
        if part is matcher:
            matcher.bind(num_anchors[0], tuple(strides))
        expected = getattr(part, "num_anchors", None)
        if expected is not None and set(num_anchors) != {expected}:
            raise ValueError(
                f"the {name} was built for num_anchors={expected} per location, but the anchor "
                f"generator gives {num_anchors} on its levels"
            )
    if isinstance(box2box_transform, PointDistances) and set(num_anchors) != {1}:
        raise ValueError(
            "PointDistances regresses from a point and needs one anchor per location, but the "
            f"anchor generator gives {num_anchors} on its levels; use one size and one aspect "
            "ratio, or Box2BoxTransform"
        )
    head_classes = getattr(head, "num_classes", num_classes)
    if head_classes != num_classes:
        raise ValueError(
            f"num_classes={num_classes}, but the head was built for {head_classes} classes"
        )
    num_values = num_box_values(box2box_transform)
    head_values = getattr(head, "num_box_values", num_values)
    if head_values != num_values:
        raise ValueError(
            f"the head was built for num_box_values={head_values} per anchor, but "
            f"{type(box2box_transform).__name__} takes {num_values}"
        )
