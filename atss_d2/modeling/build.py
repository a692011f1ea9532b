"""Builds the parts of :class:`ATSS` from a yaml (yacs) cfg.

The keys under ``MODEL.ATSS`` are the arguments of the classes, see :mod:`atss_d2.config.defaults`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.common.registry import Registry

from ..config.arguments import arguments_of, kwargs_from, node_name
from .box_coding import PointDistances, TwoSidedBox2BoxTransform, num_box_values
from .criterion import CRITERION_REGISTRY, ATSSCriterion, Criterion, IoUBranchCriterion
from .distance_distributions import DistanceDistributions
from .dyhead import DyHead
from .head import HEAD_REGISTRY
from .matchers import MATCHER_REGISTRY, ATSSMatcher, DenseMatcher, IoUMatcher, TopKMatcher

logger = logging.getLogger(__name__)

# Defaults of both Detectron2's keys and ours.
_NUM_CLASSES = 80
_DETECTIONS_PER_IMAGE = 100

# Classes whose node is not named by node_name().
_NODES = {
    ATSSMatcher: "MATCHER",
    IoUMatcher: "IOU_MATCHER",
    TopKMatcher: "TOPK_MATCHER",
    IoUBranchCriterion: "IOU_BRANCH_CRITERION",
}
# Arguments that all rules share, set once in MODEL.ATSS.MATCHER.
_SHARED_BY_RULES = ("IGNORE_IOA_THRESH", "CENTER_EPSILON", "INSET")


def _box2box_transform(
    *, weights: Sequence[float], clamp_both_sides: bool
) -> Box2BoxTransform | TwoSidedBox2BoxTransform:
    coder = TwoSidedBox2BoxTransform if clamp_both_sides else Box2BoxTransform
    return coder(weights=tuple(weights))


# Value of MODEL.ATSS.BOX_CODER -> the node with the arguments, and what builds the coder.
BOX_CODERS = {
    "Box2BoxTransform": ("BOX2BOX_TRANSFORM", _box2box_transform),
    "PointDistances": ("POINT_DISTANCES", PointDistances),
    "DistanceDistributions": ("DISTANCE_DISTRIBUTIONS", DistanceDistributions),
}


def build_matcher(cfg: CfgNode) -> DenseMatcher:
    """Builds the rule that ``MODEL.ATSS.MATCHER.NAME`` names; its model binds it.

    Arguments come from the node named after the class (``MODEL.ATSS.MY_RULE`` for ``MyRule``), from
    those of its base classes, and from the keys of ``MODEL.ATSS.MATCHER`` that all rules share. If
    ``WARM_UP_ITERATIONS`` is above 0, an :class:`ATSSMatcher` is the rule of these iterations.

    Args:
        cfg: A cfg with ``MODEL.ATSS``.

    Raises:
        ValueError: There is no such rule; the message names the known ones.
    """
    node = cfg.MODEL.ATSS
    rule = _registered(MATCHER_REGISTRY, "MATCHER", node)
    shared = CfgNode({key: node.MATCHER[key] for key in _SHARED_BY_RULES})
    kwargs = {**kwargs_from(shared, rule), **_own_kwargs(node, rule)}
    if kwargs.get("warm_up_iterations"):
        warm_up = {**kwargs_from(shared, ATSSMatcher), **_own_kwargs(node, ATSSMatcher)}
        kwargs["warm_up"] = ATSSMatcher(**warm_up)
    return rule(**kwargs)


def build_criterion(cfg: CfgNode) -> Criterion:
    """Builds the losses that ``MODEL.ATSS.CRITERION.NAME`` names; their model binds them.

    Arguments come from the keys of ``MODEL.ATSS`` that are arguments of :class:`ATSSCriterion`, and
    from the node named after the class.

    Args:
        cfg: A cfg with ``MODEL.ATSS``.

    Raises:
        ValueError: There is no such criterion, or it lacks an argument whose key was changed.
    """
    node = cfg.MODEL.ATSS
    criterion = _registered(CRITERION_REGISTRY, "CRITERION", node)
    known = arguments_of(criterion)
    for name, parameter in arguments_of(ATSSCriterion).items():
        if name not in known and node[name.upper()] != parameter.default:
            raise ValueError(
                f"MODEL.ATSS.{name.upper()} is {node[name.upper()]}, but {criterion.__name__} has "
                f"no argument {name}: leave it at {parameter.default}"
            )
    return criterion(**{**kwargs_from(node, criterion), **_own_kwargs(node, criterion)})


def key_of(node: CfgNode, part: str, argument: str) -> str | None:
    """Returns the key, below ``MODEL.ATSS``, of an argument of the matcher or the criterion.

    Args:
        node: ``MODEL.ATSS``.
        part: "matcher" or "criterion".
        argument: Name of the argument. None is returned if the part has no such argument.
    """
    registry = {"matcher": MATCHER_REGISTRY, "criterion": CRITERION_REGISTRY}[part]
    kind = _registered(registry, part.upper(), node)
    if argument not in arguments_of(kind):
        return None
    for base in kind.__mro__:
        name = _NODES.get(base, node_name(base))
        if argument.upper() in node.get(name, {}):
            return f"{name}.{argument.upper()}"
    return argument.upper()


def _own_kwargs(node: CfgNode, kind: type) -> dict[str, Any]:
    """Reads arguments from the nodes named after a class and its base classes."""
    kwargs = {}
    for base in reversed(kind.__mro__):
        own = node.get(_NODES.get(base, node_name(base)))
        if own is not None:
            kwargs.update(kwargs_from(own, kind))
    return kwargs


def _registered(registry: Registry, key: str, node: CfgNode) -> type:
    """Returns the class that a key names in a registry."""
    name = node[key].NAME
    if name not in registry:
        raise ValueError(
            f"MODEL.ATSS.{key}.NAME must be one of {', '.join(name for name, _ in registry)}, got "
            f"'{name}'; one of your own is registered by @{key}_REGISTRY.register()"
        )
    return registry.get(name)


def detections_per_image(cfg: CfgNode) -> int:
    """Returns the maximum number of detections per image, which has two keys.

    ``TEST.DETECTIONS_PER_IMAGE`` is Detectron2's, ``MODEL.ATSS.MAX_DETECTIONS_PER_IMAGE`` ours. The
    one that differs from their common default, 100, counts.

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
    """Checks that the number of classes was not set where only other Detectron2 models read it.

    Raises:
        ValueError: ``MODEL.ATSS.NUM_CLASSES`` has its default, and the key of another model does
            not.
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
    """Builds the arguments of :class:`ATSS` from ``MODEL.ATSS`` and Detectron2's own keys.

    Args:
        cfg: A cfg with ``MODEL.ATSS``.
        meta_architecture: :class:`ATSS` or a subclass, whose further arguments may also have keys.

    Raises:
        ValueError: A key has an unknown value, or two keys contradict each other.
    """
    check_num_classes(cfg)
    node = cfg.MODEL.ATSS
    backbone = build_backbone(cfg)
    if node.DY_HEAD.NUM_BLOCKS:
        blocks = kwargs_from(node.DY_HEAD, DyHead)
        backbone = DyHead(backbone=backbone, in_features=node.HEAD_IN_FEATURES, **blocks)
    shapes = backbone.output_shape()
    names = node.HEAD_IN_FEATURES or sorted(shapes, key=lambda name: shapes[name].stride)
    input_shape = [shapes[name] for name in names]
    anchor_generator = build_anchor_generator(cfg, input_shape)
    if node.BOX_CODER not in BOX_CODERS:
        raise ValueError(
            f"MODEL.ATSS.BOX_CODER must be one of {', '.join(BOX_CODERS)}, got '{node.BOX_CODER}'"
        )
    coder_key, coder = BOX_CODERS[node.BOX_CODER]
    coder = coder(**kwargs_from(node[coder_key], coder))
    head = _registered(HEAD_REGISTRY, "HEAD", node)
    head_kwargs = {**kwargs_from(node.HEAD, head), **_own_kwargs(node, head)}
    if "anchor_offset" in arguments_of(head):
        head_kwargs["anchor_offset"] = anchor_generator.offset
    kwargs = kwargs_from(node, meta_architecture)
    if ATSSCriterion.__name__ != node.CRITERION.NAME:
        kwargs = {k: v for k, v in kwargs.items() if k not in arguments_of(ATSSCriterion)}
        kwargs["criterion"] = build_criterion(cfg)
    parts = {
        **kwargs,
        "backbone": backbone,
        "head": head(
            input_shape=input_shape,
            num_classes=node.NUM_CLASSES,
            num_anchors=anchor_generator.num_anchors[0],
            num_box_values=num_box_values(coder),
            **head_kwargs,
        ),
        "anchor_generator": anchor_generator,
        "box2box_transform": coder,
        "matcher": build_matcher(cfg),
        "num_classes": node.NUM_CLASSES,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "input_format": cfg.INPUT.FORMAT,
        "max_detections_per_image": detections_per_image(cfg),
        "vis_period": cfg.VIS_PERIOD,
    }
    known = arguments_of(meta_architecture)  # a subclass may fix some
    return {name: value for name, value in parts.items() if name in known}
