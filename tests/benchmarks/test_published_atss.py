"""The published algorithm against loops over anchors and boxes."""

import pytest
import torch

from benchmarks import published_atss, scenes
from tests.matching_scenes import by_loops, grid


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("topk", [1, 4, 9])
def test_equals_the_loops(seed, topk):
    levels = grid([(8, 10), (4, 5), (2, 3)], [8, 16, 32], sides=((4.0, 4.0),))
    boxes = scenes.random_boxes(1 + seed % 6, (64, 80), seed)
    expected = by_loops("atss", levels, [boxes], topk=topk)[0]
    matched = published_atss.match_image(levels, boxes, topk)
    # float32 sums may put a threshold on the other side of an IoU that is equal to it
    assert int((matched != expected).sum()) <= (1 if topk == 1 else 0)
    assert matched.dtype == torch.int64
    if topk > 1:
        assert (matched >= 0).any()


def test_an_anchor_of_two_boxes_goes_to_the_higher_iou():
    """Anchors of side 16 at x = 8, 24, 40, ...; the second box is nearly the anchor at 24."""
    levels = grid([(1, 6)], [16], sides=((1.0, 1.0),))
    boxes = torch.tensor([[6.0, 0, 45, 16], [15.0, 0, 33, 16]])
    assert published_atss.match_image(levels, boxes, 3).tolist() == [-1, 1, -1, -1, -1, -1]
    assert published_atss.match_image(levels, boxes[:1], 3).tolist() == [-1, 0, -1, -1, -1, -1]
