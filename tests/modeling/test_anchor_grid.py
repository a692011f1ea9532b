"""Candidates by a table of near cells: equal to all distances compared, to the last tie."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.matchers import ATSSMatcher, selection
from atss_d2.modeling.matchers.grid import MAX_TOPK, AnchorGrid, anchor_grid
from atss_d2.modeling.matchers.selection import nearest_anchors_per_level
from tests.allocations import Allocations
from tests.grid_scenes import boxes_in, match_densely, scenes
from tests.matching_scenes import by_loops, grid

# ------------------------------------------------------------------------------ generated scenes


@settings(max_examples=100, derandomize=True)
@given(scene=scenes(max_topk=MAX_TOPK))
def test_candidates_equal_those_of_all_distances(scene):
    near = AnchorGrid(scene.sizes, topk=scene.topk, num_anchors=scene.num_anchors)
    candidates = near.nearest_anchors(torch.cat(scene.anchors), scene.boxes)
    expected = nearest_anchors_per_level(scene.anchors, scene.boxes, scene.topk * scene.num_anchors)
    torch.testing.assert_close(candidates, expected, rtol=0, atol=0)


@settings(max_examples=100, derandomize=True)
@given(scene=scenes(), min_positives=st.sampled_from([0, 2]))
def test_labels_equal_those_of_all_distances(scene, min_positives):
    matcher = ATSSMatcher(
        topk=scene.topk, num_anchors=scene.num_anchors, min_positives=min_positives
    )
    gt_boxes = [scene.boxes[::2], scene.boxes[1::2], scene.boxes]
    matched = matcher(scene.anchors, gt_boxes, grid_sizes=scene.sizes)
    assert torch.equal(matched, match_densely(matcher, scene.anchors, gt_boxes))
    assert torch.equal(matched, matcher(scene.anchors, gt_boxes))  # sizes found from the values


@settings(max_examples=100, derandomize=True)
@given(scene=scenes(max_side=6, max_topk=20, max_boxes=3))
def test_labels_equal_the_loops(scene):
    matcher = ATSSMatcher(topk=scene.topk, num_anchors=scene.num_anchors)
    expected = by_loops(
        "atss", scene.anchors, [scene.boxes], topk=scene.topk, num_anchors=scene.num_anchors
    )
    matched = matcher(scene.anchors, [scene.boxes], grid_sizes=scene.sizes)
    torch.testing.assert_close(matched, expected, rtol=0, atol=0)


# ---------------------------------------------------------------------------- boxes that are none


@pytest.mark.parametrize("num_anchors", [1, 3])
@pytest.mark.parametrize(
    "box",
    [
        [math.nan] * 4,
        [0.0, 0, math.nan, 8],
        [-math.inf, -math.inf, math.inf, math.inf],
        [0.0, 0, math.inf, 16],
        [-math.inf, 0, 16, 16],
        [math.inf] * 4,
        [1e30, 1e30, 1e30, 1e30],
        [3e38, 3e38, -3e38, -3e38],
        [16.0, 8, 16, 8],
    ],
    ids=str,
)
def test_candidates_of_boxes_that_are_none_are_anchors(box, num_anchors):
    sizes = [(6, 6), (1, 3)]
    anchors = grid(sizes, [8, 16], [(1, 1)] * num_anchors)
    boxes = torch.tensor([box, [8.0, 8, 24, 32]])
    near = AnchorGrid(sizes, topk=9, num_anchors=num_anchors)
    candidates = near.nearest_anchors(torch.cat(anchors), boxes)
    expected = nearest_anchors_per_level(anchors, boxes, 9 * num_anchors)
    assert torch.equal(candidates[1], expected[1])
    of_level = candidates[0].split([9 * num_anchors, 3 * num_anchors])
    assert len(set(of_level[0].tolist())) == 9 * num_anchors
    assert of_level[0].max() < 36 * num_anchors
    assert of_level[0].min() >= 0
    assert sorted((of_level[1] - 36 * num_anchors).tolist()) == list(range(3 * num_anchors))


@pytest.mark.parametrize("center", [1e4, 1e6, 1e9, 1e17, -1e5, -1e12])
def test_candidates_of_boxes_too_far_away_are_anchors_at_that_border(center):
    sizes = [(30, 40)]
    (anchors,) = grid(sizes, [8])
    box = torch.tensor([[center - 8, 70, center + 8, 90]])
    candidates = AnchorGrid(sizes, topk=9, num_anchors=1).nearest_anchors(anchors, box)
    columns = candidates % 40
    assert len(set(candidates[0].tolist())) == 9
    assert (columns >= 31).all() if center > 0 else (columns < 9).all()


# ------------------------------------------------------------------------------------- the cost

SIZES = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
STRIDES = [8, 16, 32, 64, 128]


def test_memory_of_a_thousand_boxes():
    """All distances of 1000 boxes and 22400 anchors take 90 MB, their keys twice that."""
    anchors = torch.cat(grid(SIZES, STRIDES))
    near = AnchorGrid(SIZES, topk=9, num_anchors=1)
    boxes = boxes_in(800, 1344, 1000)
    near.nearest_anchors(anchors, boxes)  # tables are made
    with Allocations() as allocations:
        near.nearest_anchors(anchors, boxes)
    assert allocations.peak_bytes < 6e6


def test_memory_does_not_grow_with_boxes():
    anchors = torch.cat(grid([(12, 12)], [8]))
    near = AnchorGrid([(12, 12)], topk=9, num_anchors=1)
    boxes = boxes_in(96, 96, 20000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(selection.MAX_CHUNK_ENTRIES, "cpu", 2**14)
        with Allocations() as allocations:
            candidates = near.nearest_anchors(anchors, boxes)
    result = candidates.numel() * candidates.element_size()
    assert allocations.peak_bytes < 2 * result + boxes.numel() * 4 * 4 + 2**20
    assert torch.equal(candidates, near.nearest_anchors(anchors, boxes))


def test_work_does_not_grow_with_the_image():
    """But for the centers of its anchors."""

    def work(scale, count):
        sizes = [(height * scale, width * scale) for height, width in SIZES[:4]]
        near = AnchorGrid(sizes, topk=9, num_anchors=1)
        anchors = torch.cat(grid(sizes, STRIDES[:4]))
        boxes = boxes_in(800 * scale, 1344 * scale, count)
        near.nearest_anchors(anchors, boxes)
        with Allocations() as allocations:
            near.nearest_anchors(anchors, boxes)
        return allocations.num_elements

    assert work(2, 200) - work(2, 100) == work(1, 200) - work(1, 100)
    assert work(2, 100) < work(1, 100) + 10 * 3 * sum(height * width for height, width in SIZES)


def test_the_host_never_waits():
    """Tensors without values: whoever looks at one fails."""
    near = AnchorGrid(SIZES, topk=9, num_anchors=1)
    anchors = torch.empty(sum(h * w for h, w in SIZES), 4, device="meta")
    candidates = near.nearest_anchors(anchors, torch.empty(30, 4, device="meta"))
    assert candidates.shape == (30, 45)
    assert candidates.device.type == "meta"


def test_images_of_the_same_size_share_a_table():
    anchors = grid([(4, 6), (2, 3)], [8, 16])
    first = anchor_grid(anchors, None, topk=9, num_anchors=1)
    assert anchor_grid(anchors, [[4, 6], [2, 3]], topk=9, num_anchors=1) is first
    assert anchor_grid(anchors, None, topk=8, num_anchors=1) is not first
    assert anchor_grid(anchors, None, topk=MAX_TOPK + 1, num_anchors=1) is None
