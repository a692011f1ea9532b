"""Checks that the parts of a detector fit together, when it is built."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from detectron2.layers import ShapeSpec
from torch import nn

from ..config.arguments import node_name
from .box_coding import PointDistances, num_box_values
from .criterion import Criterion
from .distance_distributions import DistanceDistributions
from .geometry import box_areas
from .matchers import DenseMatcher

logger = logging.getLogger(__name__)


def check_parts(
    *,
    backbone_shapes: dict[str, ShapeSpec],
    head_in_features: Sequence[str],
    anchor_generator: nn.Module,
    head: nn.Module,
    matcher: DenseMatcher,
    box2box_transform,
    num_classes: int,
    criterion: Criterion | None = None,
) -> None:
    """Checks that the parts of a detector fit together, and binds the matcher to the others.

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
    check_head(
        head,
        anchor_generator=anchor_generator,
        box2box_transform=box2box_transform,
        num_classes=num_classes,
    )
    matcher.bind(num_anchors[0], tuple(strides))
    _check_num_anchors(matcher, "matcher", num_anchors)
    channels = [backbone_shapes[name].channels for name in head_in_features]
    expected = getattr(head, "in_channels", None)
    if expected is not None and set(channels) != {expected}:
        raise ValueError(
            f"the head was built for features of {expected} channels, but those of the backbone, "
            f"{list(head_in_features)}, have {channels}: set head.input_shape, or the channels of "
            "the backbone"
        )
    if criterion is not None:
        criterion.check_fit(head, matcher, num_levels=len(num_anchors))


def check_head(
    head: nn.Module, *, anchor_generator: nn.Module, box2box_transform, num_classes: int
) -> None:
    """Checks that a head and a box coder fit together, and both to the anchors.

    Raises:
        ValueError: They do not; the message names the values.
    """
    num_anchors = anchor_generator.num_anchors
    _check_num_anchors(head, "head", num_anchors)
    from_points = isinstance(box2box_transform, (PointDistances, DistanceDistributions))
    if from_points and set(num_anchors) != {1}:
        raise ValueError(
            f"{type(box2box_transform).__name__} regresses from a point and needs one anchor per "
            f"location, but the anchor generator gives {num_anchors} on its levels; use one size "
            "and one aspect ratio, or Box2BoxTransform"
        )
    if from_points:
        _check_scale(anchor_generator, box2box_transform, head)
    head_classes = getattr(head, "num_classes", num_classes)
    if head_classes != num_classes:
        raise ValueError(
            f"num_classes={num_classes}, but the head was built for {head_classes} classes"
        )
    if hasattr(head, "check_fit"):
        head.check_fit(anchor_generator, box2box_transform)
    num_values = num_box_values(box2box_transform)
    head_values = getattr(head, "num_box_values", num_values)
    if head_values != num_values:
        raise ValueError(
            f"the head was built for num_box_values={head_values} per anchor, but "
            f"{type(box2box_transform).__name__} takes {num_values}: set head.num_box_values"
        )


def _check_num_anchors(part: object, name: str, num_anchors: Sequence[int]) -> None:
    expected = getattr(part, "num_anchors", None)
    if expected is not None and set(num_anchors) != {expected}:
        raise ValueError(
            f"the {name} was built for num_anchors={expected} per location, but the anchor "
            f"generator gives {num_anchors} on its levels"
        )


def _check_scale(
    anchor_generator: nn.Module, coder: PointDistances | DistanceDistributions, head: nn.Module
) -> None:
    """Checks that a coder finds the strides of anchors, which it computes from their sides.

    Raises:
        ValueError: It does not, and the head or the distributions depend on it.
    """
    cells = getattr(anchor_generator, "cell_anchors", None)
    if cells is None or any(cell.device.type != "cpu" for cell in cells):
        return
    areas = [box_areas(cell[:1]).item() for cell in cells]
    found = [round(area**0.5 / s, 2) for area, s in zip(areas, anchor_generator.strides)]
    if all(math.isclose(scale, coder.anchor_scale, rel_tol=0.02) for scale in found):
        return
    message = (
        f"{type(coder).__name__} has anchor_scale={coder.anchor_scale:g}, the side of an anchor in "
        f"strides, but on the levels of the anchor generator it is {found}: set "
    )
    if len(set(found)) == 1:
        key = f"MODEL.ATSS.{node_name(type(coder))}.ANCHOR_SCALE"
        message += f"box2box_transform.anchor_scale={found[0]:g} ({key} in yaml)"
    else:
        message += "anchor_generator.sizes to the same multiple of all strides"
    # Other heads only learn distances in another unit, as models did before this was checked.
    if isinstance(coder, PointDistances) and not hasattr(head, "check_fit"):
        logger.warning(message)
        return
    raise ValueError(message)
