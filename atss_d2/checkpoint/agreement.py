"""Whether a model that is built has the settings of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.modeling.backbone.resnet import BottleneckBlock

from ..modeling.atss import ATSS
from ..modeling.backbones import LastLevelP6P7, LastLevelP6P7WithoutReLU
from ..modeling.box_coding import PointDistances, TwoSidedBox2BoxTransform
from .recipes import Recipe, get_recipe

__all__ = ["recipe_differences"]


def recipe_differences(model: ATSS, recipe: str) -> list[str]:
    """What a model computes otherwise than the implementation that its weights come from.

    Thresholds and numbers of candidates and detections, which are often changed on purpose, are
    not looked at; nor is what only labels and losses depend on (``matcher.inset``,
    ``centerness_inset``, ``floor_per_image``).

    Args:
        model: A built model.
        recipe: Whose weights it is given.

    Returns:
        Parts ``name is value, not value``; none if the model gives the results of the original.

    Raises:
        ValueError: There is no such recipe.
    """
    return [
        f"{name} is {value}, not {needed}"
        for name, value, needed in _settings(model, get_recipe(recipe))
        if value != needed
    ]


def _settings(model: ATSS, recipe: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Names, values and needed values."""
    generator, coder = model.anchor_generator, model.box2box_transform
    yield "anchor_generator.offset", generator.offset, recipe.anchor_offset
    shift = getattr(generator, "center_shift", 0.0)
    yield "anchor_generator.center_shift", shift, recipe.center_shift
    if isinstance(coder, PointDistances):
        yield "box2box_transform.inset", coder.inset, recipe.inset
    else:
        is_clamped = isinstance(coder, TwoSidedBox2BoxTransform)
        yield "box2box_transform.clamp_both_sides", is_clamped, recipe.clamp_both_sides
    top_block = getattr(model.backbone, "top_block", None)
    if isinstance(top_block, LastLevelP6P7):
        has_relu = not isinstance(top_block, LastLevelP6P7WithoutReLU)
        yield "backbone.p7_relu", has_relu, recipe.p7_relu
    blocks = [m for m in model.backbone.modules() if isinstance(m, BottleneckBlock)]
    if any(block.stride > 1 for block in blocks):
        is_resnet = all(block.conv2.groups == 1 for block in blocks)
        stride_in_1x1 = any(block.conv1.stride != (1, 1) for block in blocks)
        needed = recipe.stride_in_1x1 and is_resnet
        yield "backbone.bottom_up.stages.stride_in_1x1", stride_in_1x1, needed
    yield "test_score_type", model.test_score_type, recipe.score_type
    yield "test_rank_by", model.test_rank_by, recipe.rank_by
    for name in ("pixel_mean", "pixel_std"):
        values = [round(value, 4) for value in getattr(model, name).flatten().tolist()]
        yield name, values, list(getattr(recipe, name))
    yield "input_format", model.input_format, recipe.input_format
