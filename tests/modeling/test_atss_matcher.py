"""Algorithm 1: numbers by hand, and what follows from the rule."""

import math

import pytest
import torch

from atss_d2.modeling.matchers import BACKGROUND, ATSSMatcher
from tests import reference_matching
from tests.matching_scenes import by_loops, grid, stats_of


def check_against_loops(anchors, gt_boxes, **options):
    matched = ATSSMatcher(**options)(anchors, gt_boxes)
    expected = by_loops("atss", anchors, gt_boxes, **options)
    torch.testing.assert_close(matched, expected, rtol=0, atol=0)
    return matched


def test_one_box_by_hand():
    # 4 x 4 anchors of 8 x 8 pixels, side by side. The box is the anchor 5: of its 9 nearest
    # anchors one has IoU 1, the others 0. Mean 1/9, unbiased deviation
    # sqrt(((8/9)^2 + 8 (1/9)^2) / 8) = sqrt(72/81/8) = 1/3, so the threshold is 4/9.
    matcher = ATSSMatcher()
    anchors, boxes = grid([(4, 4)], [8], [(1, 1)]), [torch.tensor([[8.0, 8, 16, 16]])]
    matched = matcher(anchors, boxes)
    assert matched.tolist() == [[-1] * 5 + [0] + [-1] * 10]
    torch.testing.assert_close(stats_of(matcher, anchors, boxes)["mean_threshold"].item(), 4 / 9)


def test_the_deviation_is_unbiased():
    # Two candidates of IoU 1/2 and 1/4: mean 3/8, deviation sqrt(2 (1/8)^2 / (2 - 1)) = 0.17678.
    anchors = [torch.tensor([[0.0, 0, 8, 16]]), torch.tensor([[0.0, 0, 8, 8]])]
    matcher = ATSSMatcher()
    stats = stats_of(matcher, anchors, [torch.tensor([[0.0, 0, 16, 16]])])
    torch.testing.assert_close(stats["mean_threshold"].item(), 3 / 8 + math.sqrt(2) / 8)


def test_mean_threshold_is_the_mean_over_the_boxes():
    anchors = grid([(6, 6), (3, 3)], [8, 16], [(2, 2)])
    boxes = [torch.tensor([[3.0, 4, 30, 21], [7, 1, 17, 45]]), torch.tensor([[0.0, 0, 48, 48]])]
    matcher = ATSSMatcher(topk=3)
    stats = stats_of(matcher, anchors, boxes)
    thresholds = [
        reference_matching.atss_threshold([a.tolist() for a in anchors], box, topk=3)
        for box in torch.cat(boxes).tolist()
    ]
    torch.testing.assert_close(
        stats["mean_threshold"].item(), sum(thresholds) / 3, rtol=1e-6, atol=0
    )


def test_candidates_at_equal_distance_are_taken_in_order_of_index():
    # The center of the box is equally far from all four anchors: the first two are candidates.
    # Both have IoU 64/256: a single value, so both are positive.
    anchors = grid([(2, 2)], [8], [(1, 1)])
    assert ATSSMatcher(topk=2)(anchors, [torch.tensor([[0.0, 0, 16, 16]])]).tolist() == [
        [0, 0, -1, -1]
    ]


def test_an_anchor_goes_to_the_box_of_highest_iou():
    anchors = grid([(4, 4)], [8], [(1, 1)])
    # The anchor 5 is [8, 8, 16, 16]: IoU 64/100 with the first box, 64/81 with the second.
    boxes = torch.tensor([[7.0, 7, 17, 17], [8, 8, 17, 17], [6, 6, 18, 18]])
    matched = ATSSMatcher()(anchors, [boxes])
    assert matched[0, 5] == 1
    assert (matched[0, :5] == BACKGROUND).all()


@pytest.mark.parametrize("shape", [(1, 9), (3, 3), (5, 7)])
def test_equal_ious_are_equal_to_their_threshold(shape):
    """A box that holds all candidates of a level: IoU = mean, deviation 0, all are positive.

    In float32 the mean of nine equal numbers is often another number.
    """
    sides = 100 + 100 * torch.rand(50, 4)
    boxes = torch.tensor([-1.0, -1, 1, 1]) * sides
    matched = ATSSMatcher()(grid([shape], [8], [(2, 2)]), list(boxes[:, None]))
    assert ((matched == 0).sum(dim=1) == 9).all()


def test_a_center_must_be_more_than_epsilon_inside():
    # The anchor's center (4, 4) is 0.5 px inside the box on the left, 1 px after an inset of -0.5.
    anchors = grid([(1, 1)], [8], [(1, 1)])
    box = torch.tensor([[3.5, 0, 9, 8]])
    for options, is_positive in (
        ({}, True),
        ({"center_epsilon": 0.49}, True),
        ({"center_epsilon": 0.5}, False),
        ({"inset": 0.48}, True),
        ({"inset": 0.5}, False),
    ):
        assert (ATSSMatcher(**options)(anchors, [box]) == 0).all() == is_positive, options


def test_min_positives_gives_a_box_between_centers_its_best_candidate():
    # 4 px between the centers 4 and 12: the paper's rule finds no positive. IoU is 4/76 with each
    # of the anchors 0, 1, 4, 5, which are equally far.
    anchors = grid([(4, 4)], [8], [(1, 1)])
    box = torch.tensor([[6.0, 6, 10, 10]])
    assert (ATSSMatcher()(anchors, [box]) == BACKGROUND).all()
    assert ATSSMatcher(min_positives=1)(anchors, [box]).tolist() == [[0] + [-1] * 15]
    matched = ATSSMatcher(min_positives=3)(anchors, [box])
    assert (matched[0] == 0).nonzero().flatten().tolist() == [0, 1, 4]


def test_min_positives_leaves_boxes_without_area_alone():
    anchors = grid([(4, 4)], [8], [(1, 1)])
    boxes = torch.tensor([[6.0, 6, 6, 10], [6, 6, 10, 6], [10, 10, 6, 6], [6, 10, 10, 6]])
    assert (ATSSMatcher(min_positives=2)(anchors, [boxes]) == BACKGROUND).all()


def test_min_positives_when_an_iou_is_negative_zero():
    """min(x2) - max(x1) is -0.0 where a box that ends at -0.0 touches an anchor at 0.0."""
    anchors = grid([(1, 1)], [8], [(1, 1)])
    box = torch.tensor([[-8.0, 0, -0.0, 8]])
    assert ATSSMatcher(min_positives=1)(anchors, [box]).tolist() == [[0]]
    both = torch.cat((box, box - 8))  # the other has 0.0: a tie
    assert ATSSMatcher(min_positives=1)(anchors, [both]).tolist() == [[0]]


def test_share_of_tiny_boxes_without_a_positive():
    """Three quarters of boxes of 4 x 4 px, anywhere in an image, lie between the centers.

    A center of stride 8 is inside, by 0.01 px, with probability (3.98 / 8)^2. Centers of the
    other strides are of no use: IoU with their anchors is below mean + deviation.
    """
    anchors = grid([(40, 40), (20, 20), (10, 10), (5, 5), (3, 3)], [8, 16, 32, 64, 128])
    corners = 316 * torch.rand(600, 2)
    boxes = torch.cat((corners, corners + 4), dim=1)
    matched = ATSSMatcher()(anchors, list(boxes[:, None]))  # each alone in an image
    share = (matched < 0).all(dim=1).double().mean().item()
    assert share == pytest.approx(1 - (3.98 / 8) ** 2, abs=0.04)  # 600 draws scatter by 0.018


def test_a_single_candidate_has_no_deviation():
    anchors = grid([(1, 1)], [8], [(1, 1)])
    boxes = torch.tensor([[-30.0, -3, 5, 5]])  # the threshold is the IoU itself
    assert check_against_loops(anchors, [boxes]).tolist() == [[0]]
    anchors = grid([(6, 6)], [8], [(1, 1)])
    assert (check_against_loops(anchors, [boxes], topk=1) == 0).sum() == 1
