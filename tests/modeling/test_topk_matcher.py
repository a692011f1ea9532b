"""A fixed number of anchors by IoU: numbers by hand."""

import pytest
import torch

from atss_d2.modeling.matchers import BACKGROUND, TopKMatcher
from tests.matching_scenes import grid


def test_the_anchors_of_highest_iou_over_all_levels():
    # IoU with the box of 8 x 8: 1 of the anchor 0; of level two, anchors of 16 x 16, 64/256 of the
    # first, 0 of the others.
    anchors = grid([(4, 4), (2, 2)], [8, 16], [(1, 1)])
    boxes = torch.tensor([[0.0, 0, 8, 8]])
    assert TopKMatcher(topk=1)(anchors, [boxes])[0].tolist() == [0] + [-1] * 19
    for topk in (2, 9, 100):  # anchors of IoU 0 are none
        matched = TopKMatcher(topk=topk)(anchors, [boxes])[0]
        assert (matched == 0).nonzero().flatten().tolist() == [0, 16]


def test_among_equal_ious_the_lower_anchor_is_taken():
    # A quarter of each of the anchors 5, 6, 9, 10 is covered by the box: IoU 16/112 each.
    anchors = grid([(4, 4)], [8], [(1, 1)])
    matched = TopKMatcher(topk=3)(anchors, [torch.tensor([[12.0, 12, 20, 20]])])
    assert (matched[0] == 0).nonzero().flatten().tolist() == [5, 6, 9]


def test_an_anchor_goes_to_the_box_of_highest_iou():
    anchors = grid([(4, 4)], [8], [(1, 1)])
    # The anchor 5 is [8, 8, 16, 16]: IoU 64/100 with the first box, 64/81 with the others.
    boxes = torch.tensor([[7.0, 7, 17, 17], [8, 8, 17, 17], [7, 7, 16, 16]])
    matched = TopKMatcher(topk=1)(anchors, [boxes])
    assert matched[0].tolist() == [-1] * 5 + [1] + [-1] * 10


def test_every_box_of_an_image_of_its_own_gets_k_anchors():
    anchors = grid([(12, 12), (6, 6)], [8, 16], [(4, 4)])
    corners = 60 * torch.rand(30, 2)
    boxes = torch.cat((corners, corners + 30 * torch.rand(30, 2)), dim=1)
    for topk in (1, 5, 9):
        matched = TopKMatcher(topk=topk)(anchors, list(boxes[:, None]))
        assert ((matched == 0).sum(dim=1) == topk).all()


def test_a_box_away_from_all_anchors_gets_none():
    anchors = grid([(2, 2)], [8], [(1, 1)])
    boxes = torch.tensor([[-8.0, 0, -0.0, 8], [50, 50, 60, 60]])  # one of them touches an anchor
    assert (TopKMatcher()(anchors, [boxes]) == BACKGROUND).all()


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="topk must be >= 1, got 0"):
        TopKMatcher(topk=0)
