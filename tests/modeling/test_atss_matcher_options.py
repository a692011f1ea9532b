"""Options of ATSS beyond the paper: numbers by hand."""

import math

import pytest
import torch

from atss_d2.modeling.matchers import BACKGROUND, ATSSMatcher
from tests.matching_scenes import grid, stats_of


def test_the_threshold_is_the_mean_plus_a_multiple_of_the_deviation():
    # Of nine candidates one has IoU 1, the others 0: mean 1/9, deviation 1/3. The best IoU is
    # reached with a factor of 8/3.
    anchors, boxes = grid([(4, 4)], [8], [(1, 1)]), [torch.tensor([[8.0, 8, 16, 16]])]
    for std_factor, num_positives in ((0.0, 1), (2.66, 1), (2.67, 0)):
        matcher = ATSSMatcher(std_factor=std_factor)
        assert (matcher(anchors, boxes) == 0).sum() == num_positives
        torch.testing.assert_close(
            stats_of(matcher, anchors, boxes)["mean_threshold"].item(), 1 / 9 + std_factor / 3
        )


def test_the_biased_deviation_of_two_candidates_reaches_the_better_one():
    # IoUs 1/2 and 1/4: mean 3/8, deviation sqrt(2 (1/8)^2 / 2) = 1/8, threshold 1/2.
    anchors = [torch.tensor([[0.0, 0, 8, 16]]), torch.tensor([[0.0, 0, 8, 8]])]
    boxes = torch.tensor([[0.0, 0, 16, 16]])
    matcher = ATSSMatcher(unbiased_std=False)
    assert matcher(anchors, [boxes]).tolist() == [[0, -1]]
    assert stats_of(matcher, anchors, [boxes])["mean_threshold"] == 0.5
    assert (ATSSMatcher()(anchors, [boxes]) == BACKGROUND).all()


def test_the_biased_deviation_of_two_values_reaches_the_higher_one():
    """IoUs a, a, a, b, b, b with a < b: mean + deviation is b, which takes more than float32."""
    anchors = grid([(1, 3), (1, 3)], [8, 16], [(1, 1)])
    boxes = torch.tensor([-1.0, -1, 1, 1]) * (50 + 10 * torch.rand(200, 4))  # hold all anchors
    matched = ATSSMatcher(topk=3, unbiased_std=False)(anchors, list(boxes[:, None]))
    assert (matched == torch.tensor([-1, -1, -1, 0, 0, 0])).all()


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        # The box is the first anchor; the second lies 8 px beside it: hull 24 x 8, union 16 x 8,
        # distance of the centers 16, diagonal sqrt(24^2 + 8^2).
        ("iou", (1, 0)),
        ("giou", (1, -64 / 192)),
        ("diou", (1, -256 / 640)),
    ],
)
def test_metrics_by_hand(metric, values):
    anchors = [torch.tensor([[0.0, 0, 8, 8], [16, 0, 24, 8]])]
    matcher = ATSSMatcher(metric=metric)
    stats = stats_of(matcher, anchors, [torch.tensor([[0.0, 0, 8, 8]])])
    mean, half = sum(values) / 2, (values[0] - values[1]) / 2
    expected = mean + math.sqrt(2 * half**2)
    torch.testing.assert_close(stats["mean_threshold"].item(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("metric", ["iou", "giou", "diou"])
def test_boxes_that_are_none_do_not_count_in_the_mean_threshold(metric):
    anchors = grid([(4, 4)], [8], [(1, 1)])
    box, none = torch.tensor([[3.0, 4, 30, 21]]), torch.tensor([[9.0, 9, 9, 20], [math.nan] * 4])
    matcher = ATSSMatcher(metric=metric)
    alone = stats_of(matcher, anchors, [box])
    torch.testing.assert_close(stats_of(matcher, anchors, [torch.cat((box, none))]), alone)


def test_of_negative_overlaps_the_higher_one_wins_the_anchor():
    # One tall anchor, 2 x 96, and two flat boxes across it with the same center. GIoU with the
    # first is 4 / 380 - (9216 - 380) / 9216 = -0.948, with the second 8 / 408 -
    # (5376 - 408) / 5376 = -0.905. A single candidate is its own threshold.
    anchors = [torch.tensor([[7.0, -40, 9, 56]])]
    boxes = torch.tensor([[-40.0, 7, 56, 9], [-20, 6, 36, 10]])
    for order, winner in (([0, 1], 1), ([1, 0], 0)):
        assert ATSSMatcher(metric="giou")(anchors, [boxes[order]]).tolist() == [[winner]]


def test_without_the_center_test_overlap_is_enough():
    # A tiny box between four centers: of nine IoUs four are v = 4/76 and five are 0, the
    # threshold is v (4/9 + sqrt((4 (5/9)^2 + 5 (4/9)^2) / 8)) = 0.97 v.
    anchors = grid([(4, 4)], [8], [(1, 1)])
    matcher = ATSSMatcher(center_epsilon=None)
    matched = matcher(anchors, [torch.tensor([[6.0, 6, 10, 10]])])
    assert (matched[0] == 0).nonzero().flatten().tolist() == [0, 1, 4, 5]
    # All overlaps are 0, so is the threshold; that is no reason to make them positive.
    assert (matcher(anchors, [torch.tensor([[-99.0, -99, -80, -80]])]) == BACKGROUND).all()
    # A box that touches the anchors from outside.
    assert (matcher(anchors, [torch.tensor([[-8.0, 0, 0, 8]])]) == BACKGROUND).all()
