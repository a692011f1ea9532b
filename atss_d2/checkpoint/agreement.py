"""Compares a built model with a convention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.modeling.backbone.resnet import BottleneckBlock

from ..modeling.atss import ATSS
from ..modeling.backbones import LastLevelP6P7, LastLevelP6P7WithoutReLU
from ..modeling.box_coding import PointDistances
from ..modeling.dyhead import DyHead
from .conventions import Convention, get_convention
from .mmdet_heads import MMDET_HEADS, detector_of

__all__ = ["convention_differences"]


def convention_differences(model: ATSS, convention: str) -> list[str]:
    """Lists settings in which a model differs from the implementation its weights come from.

    Thresholds and numbers of candidates and detections, which are often changed on purpose, are not
    compared; nor are settings that affect only labels and losses
    (``matcher.inset``, ``centerness_inset``, ``floor_per_image``).

    Args:
        model: A built model.
        convention: Convention of the weights, ``"authors"`` or ``"mmdet"``.

    Returns:
        Strings ``name is value, not value``; empty if the model gives the original's results.

    Raises:
        ValueError: There is no such convention.
    """
    return [
        f"{name} is {value}, not {needed}"
        for name, value, needed in _settings(model, get_convention(convention))
        if value != needed
    ]


def _settings(model: ATSS, convention: Convention) -> Iterator[tuple[str, Any, Any]]:
    """Yields names, values and the values that the convention needs."""
    own = MMDET_HEADS[detector_of(lambda key: type(getattr(model, key)).__name__)]
    generator, coder = model.anchor_generator, model.box2box_transform
    yield "anchor_generator.offset", generator.offset, convention.anchor_offset
    shift = getattr(generator, "center_shift", 0.0)
    yield "anchor_generator.center_shift", shift, convention.center_shift
    if isinstance(coder, PointDistances):
        yield "box2box_transform.inset", coder.inset, convention.inset
    elif "box2box_transform" not in own.parts:
        yield "box2box_transform", type(coder).__name__, convention.box_coder.__name__
    backbone, prefix = model.backbone, "backbone"
    if isinstance(backbone, DyHead):
        reading = "flattened" if backbone.blocks[0].reads_flattened else "resize"
        yield "backbone.offsets_of_upper_level", reading, "flattened"
        divisor = convention.dyhead_divisibility or backbone.backbone.size_divisibility
        yield "backbone.size_divisibility", backbone.size_divisibility, divisor
        backbone, prefix = backbone.backbone, "backbone.backbone"
    top_block = getattr(backbone, "top_block", None)
    if isinstance(top_block, LastLevelP6P7):
        has_relu = not isinstance(top_block, LastLevelP6P7WithoutReLU)
        p7_relu = convention.p7_relu if own.p7_relu is None else own.p7_relu
        yield f"{prefix}.p7_relu", has_relu, p7_relu
    blocks = [m for m in backbone.modules() if isinstance(m, BottleneckBlock)]
    if any(block.stride > 1 for block in blocks):
        is_resnet = all(block.conv2.groups == 1 for block in blocks)
        stride_in_1x1 = any(block.conv1.stride != (1, 1) for block in blocks)
        needed = convention.stride_in_1x1 and is_resnet
        yield f"{prefix}.bottom_up.stages.stride_in_1x1", stride_in_1x1, needed
    needed = {"test_score_type": convention.score_type, "test_rank_by": convention.rank_by}
    needed |= {"test_thresh_on": "class_score", "score_voting": None}
    needed |= {key: x for key, x in own.convention.items() if key in needed}
    for key, value in needed.items():
        yield key, getattr(model, key), value
    for name in ("pixel_mean", "pixel_std"):
        values = [round(value, 4) for value in getattr(model, name).flatten().tolist()]
        yield name, values, list(getattr(convention, name))
    yield "input_format", model.input_format, convention.input_format
