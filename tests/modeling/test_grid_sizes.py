"""Whether anchors are taken for a grid, and that it makes no difference."""

import math

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.matchers import ATSSMatcher
from atss_d2.modeling.matchers.grid import MAX_TOPK, anchor_grid, grid_sizes_of
from atss_d2.modeling.matchers.selection import nearest_anchors_per_level
from tests.grid_scenes import boxes_in, match_densely, scenes
from tests.matching_scenes import by_loops, grid


def test_sizes_of_grids():
    sizes = [(7, 9), (1, 5), (5, 1), (1, 1), (2, 2), (100, 168)]
    for sides, offset in (([(8, 8)], 0.5), ([(1, 2), (2 ** (1 / 3), 1), (5, 5)], 0.3)):
        anchors = grid(sizes, [8, 16, 32, 64, 7.3, 128], sides, offset)
        assert grid_sizes_of(anchors, len(sides)) == sizes


def test_sizes_of_the_largest_images():
    """Far from the origin coordinates are rounded to 2e-4 pixels."""
    generator = DefaultAnchorGenerator(
        sizes=[[64 * 2 ** (1 / 3)]], aspect_ratios=[1.0], strides=[8], offset=0.5
    )
    (anchors,) = generator([torch.zeros(1, 1, 3, 1000)])
    assert grid_sizes_of([anchors.tensor], 1) == [(3, 1000)]


def test_roundings_of_coordinates_do_not_matter():
    for size in ((5, 7), (1, 9), (9, 1)):
        (anchors,) = grid([size], [8])
        rounded = anchors + 1e-4 * torch.rand(len(anchors), 4)
        assert grid_sizes_of([rounded], 1) == [size]
        boxes = boxes_in(60, 80, 40)
        near = anchor_grid([rounded], None, topk=9, num_anchors=1)
        expected = nearest_anchors_per_level([rounded], boxes, 9)
        assert torch.equal(near.nearest_anchors(rounded, boxes), expected)


def changed(anchors, change):
    anchors = anchors.clone()
    change(anchors)
    return anchors


base = grid([(4, 6)], [8])[0]
NO_GRIDS = {
    "empty": base[:0],
    "cut": base[:-1],
    "one moved in x": changed(base, lambda a: a[9].add_(torch.tensor([0.01, 0, 0.01, 0]))),
    "one moved in y": changed(base, lambda a: a[9].add_(torch.tensor([0, 0.01, 0, 0.01]))),
    "last moved": changed(base, lambda a: a[-1].add_(0.01)),
    "second moved": changed(base, lambda a: a[1].add_(0.01)),
    "first moved": changed(base, lambda a: a[0].add_(3)),
    "two swapped": base[[0, 2, 1, *range(3, 24)]],
    "rows of different length": base[[*range(5), *range(6, 24), 5]],
    "column by column": base.view(4, 6, 4).transpose(0, 1).reshape(24, 4),
    "backwards": base.flip(0),
    "rows backwards": base.view(4, 6, 4).flip(1).reshape(24, 4),
    "columns backwards": base.view(4, 6, 4).flip(0).reshape(24, 4),
    "oblong cells": base * torch.tensor([1, 2, 1, 2]),
    "flat cells": base * torch.tensor([1, 0.4, 1, 0.4]),
    "unequal columns": base + base[:, :1].square() * torch.tensor([0.01, 0, 0.01, 0]),
    "unequal rows": base + base[:, 1:2].square() * torch.tensor([0, 0.01, 0, 0.01]),
    "sheared": base + base[:, 1:2] * torch.tensor([0.1, 0, 0.1, 0]),
    "all in one place": base[:1].expand(24, 4),
    "twice": base.repeat(2, 1),
    "diagonal": torch.arange(4.0)[:, None] * 8 + torch.tensor([0.0, 0, 8, 8]),
    "not a number": changed(base, lambda a: a[5].fill_(math.nan)),
    "y not a number": changed(base, lambda a: a[5:, 1].fill_(math.nan)),
}


@pytest.mark.parametrize("name", NO_GRIDS)
def test_what_is_no_grid_is_matched_by_all_distances(name):
    anchors = NO_GRIDS[name]
    assert grid_sizes_of([anchors], 1) is None
    assert grid_sizes_of([base, anchors, base], 1) is None
    assert anchor_grid([anchors], None, topk=9, num_anchors=1) is None
    if name == "empty":
        return
    levels = [anchors, *grid([(2, 3)], [16])]
    corners = 60 * torch.rand(12, 2) - 5
    boxes = torch.cat((corners, corners + 40 * torch.rand(12, 2)), dim=1)
    matched = ATSSMatcher(topk=4)(levels, [boxes])
    if "number" in name:  # such anchors are far from everything
        levels = [level.nan_to_num(1e9) for level in levels]
    assert torch.equal(matched, by_loops("atss", levels, [boxes], topk=4))


def test_locations_of_other_numbers_of_anchors_are_no_grid():
    anchors = grid([(4, 6)], [8], [(1, 1)] * 3)
    assert grid_sizes_of(anchors, 3) == [(4, 6)]
    assert grid_sizes_of(anchors, 1) is None
    assert grid_sizes_of(anchors, 2) is None
    assert grid_sizes_of(anchors, 9) is None
    assert grid_sizes_of(anchors, 7) is None
    # Three in one place, or each in a place of its own: both are true.
    assert grid_sizes_of(grid([(1, 3)], [8]), 3) == [(1, 1)]


@settings(max_examples=60, derandomize=True)
@given(data=st.data(), scene=scenes(max_side=5, max_topk=12))
def test_labels_do_not_depend_on_what_is_taken_for_a_grid(data, scene):
    """Few anchors at odd places, A that is not theirs: grid or not, the labels are the same."""
    anchors = []
    for level in scene.anchors:
        level = level[: data.draw(st.integers(1, 8))]
        moved = data.draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 8.0]))
        level = level + moved * torch.tensor(data.draw(st.sampled_from([[1, 0], [0, 1]]))).repeat(2)
        anchors.append(level[data.draw(st.permutations(range(len(level))))])
    for num_anchors in (1, 2, 3, 9):
        matcher = ATSSMatcher(topk=scene.topk, num_anchors=num_anchors)
        matched = matcher(anchors, [scene.boxes])
        assert torch.equal(matched, match_densely(matcher, anchors, [scene.boxes]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "grid_sizes has 0 levels, anchors have 2"),  # not the same as unknown sizes
        ([(4, 6)], "grid_sizes has 1 levels, anchors have 2"),
        ([(4, 6), (2, 3), (1, 1)], "grid_sizes has 3 levels, anchors have 2"),
        (
            [(4, 6), (3, 3)],
            r"grid_sizes\[1\] is 3 x 3 locations of 1 anchors, but level 1 has 6 anchors",
        ),
        ([(-4, -6), (2, 3)], r"grid_sizes\[0\] is -4 x -6 .* but level 0 has 24 anchors"),
    ],
    ids=str,
)
@pytest.mark.parametrize("topk", [9, MAX_TOPK + 1])
def test_sizes_that_do_not_fit_the_anchors(sizes, message, topk):
    anchors = grid([(4, 6), (2, 3)], [8, 16])
    with pytest.raises(ValueError, match=message):
        ATSSMatcher(topk=topk)(anchors, [torch.zeros(1, 4)], grid_sizes=sizes)


def test_sizes_for_another_number_of_anchors():
    anchors = grid([(4, 6)], [8], [(1, 1)] * 3)
    with pytest.raises(ValueError, match="4 x 6 locations of 1 anchors, but level 0 has 72"):
        ATSSMatcher()(anchors, [torch.zeros(1, 4)], grid_sizes=[(4, 6)])
