"""Anchors on grids and boxes in, at and beyond the image, where the fast way may differ."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from hypothesis import strategies as st
from torch import Tensor

from atss_d2.modeling.matchers import grid as grid_module


@dataclass
class Scene:
    """Anchors of L levels of ``sizes``, boxes (M, 4), and arguments of the rule."""

    anchors: list[Tensor]
    sizes: list[tuple[int, int]]
    boxes: Tensor
    topk: int
    num_anchors: int


def _draw_boxes(draw, size, stride, start, max_boxes) -> Tensor:
    """Boxes (M, 4) with centers in, at and beyond a map; integers make ties."""
    height, width = (side * stride for side in size)

    def coordinate(length):
        return st.one_of(
            st.integers(-16, int(length) + 16),
            st.integers(-2, 2 * int(length / stride) + 2).map(lambda c: start + c * stride / 2),
            st.floats(-20, length + 20),
            st.floats(-400 * stride, length + 400 * stride),
        )

    side = st.one_of(st.integers(0, 60), st.floats(-4, 90, width=32), st.sampled_from([900, 4e4]))
    box = st.tuples(coordinate(width), coordinate(height), side, side).map(
        lambda b: [b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2]
    )
    return torch.tensor(draw(st.lists(box, max_size=max_boxes)), dtype=torch.float32).view(-1, 4)


@st.composite
def scenes(draw, max_side=24, max_topk=60, max_boxes=6) -> Scene:
    """Anchors of DefaultAnchorGenerator, whose sides are often no floats, and boxes."""
    side = st.one_of(st.integers(1, 7), st.integers(1, max_side))
    sizes = draw(st.lists(st.tuples(side, side), min_size=1, max_size=4))
    num_anchors = draw(st.sampled_from([1, 1, 3, 9]))
    offset = draw(st.sampled_from([0.0, 0.5, 0.3]))
    first_stride = draw(st.sampled_from([8, 4, 7.3]))
    scale = draw(st.sampled_from([8, 4 * 2 ** (1 / 3), 0.7, 40]))
    strides = [first_stride * 2**i for i in range(len(sizes))]
    generator = DefaultAnchorGenerator(
        sizes=[[scale * s * 2 ** (i / 3) for i in range(min(num_anchors, 3))] for s in strides],
        aspect_ratios=[1.0] if num_anchors < 9 else [0.5, 1.0, 2.0],
        strides=strides,
        offset=offset,
    )
    anchors = [a.tensor for a in generator([torch.zeros(1, 1, *size) for size in sizes])]
    level = draw(st.integers(0, len(sizes) - 1))
    boxes = _draw_boxes(draw, sizes[level], strides[level], offset * strides[level], max_boxes)
    topk = draw(st.one_of(st.integers(1, 12), st.integers(1, max_topk)))
    return Scene(anchors, sizes, boxes, topk, num_anchors)


def boxes_in(height, width, count) -> Tensor:
    """Random boxes (count, 4) in an image."""
    corners = torch.rand(count, 2) * torch.tensor([width * 0.7, height * 0.7])
    return torch.cat((corners, corners + 8 + 0.3 * height * torch.rand(count, 2)), dim=1)


def match_densely(matcher, anchors, gt_boxes) -> Tensor:
    """The labels when nothing is known of grids."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_module, "grid_sizes_of", lambda *_: None)
        return matcher(anchors, gt_boxes)
