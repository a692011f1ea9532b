"""A fixed number of anchors by IoU: numbers by hand."""

import torch

from atss_d2.modeling.matchers import BACKGROUND, TopKMatcher
from tests.matching_scenes import grid


def positives(matched):
    """Anchors of the only box of the only image."""
    return (matched[0] == 0).nonzero().flatten().tolist()


def test_the_anchors_of_highest_iou_over_all_levels():
    # Of the box of 12 x 12: anchors of 8 x 8 have the IoU 64/144 (the anchor 0), 32/176 (1, 4) and
    # 16/192 (5); the first one of 16 x 16 has 144/256, the anchor 16. The centers of 0 (4, 4) and
    # 16 (8, 8) lie inside, those of 1 (12, 4), 4 (4, 12) and 5 on the border or beyond.
    anchors = grid([(4, 4), (2, 2)], [8, 16], [(1, 1)])
    boxes = torch.tensor([[0.0, 0, 12, 12]])
    assert positives(TopKMatcher(topk=1)(anchors, [boxes])) == [16]
    for topk in (2, 3, 9, 100):
        assert positives(TopKMatcher(topk=topk)(anchors, [boxes])) == [0, 16]
    for topk, expected in ((2, [0, 16]), (3, [0, 1, 16]), (4, [0, 1, 4, 16])):
        matched = TopKMatcher(topk=topk, center_epsilon=None)(anchors, [boxes])
        assert positives(matched) == expected
    # Anchors that do not overlap the box are never positive.
    matched = TopKMatcher(topk=100, center_epsilon=None)(anchors, [boxes])
    assert positives(matched) == [0, 1, 4, 5, 16]


def test_an_anchor_whose_center_is_outside_takes_its_place():
    """The authors choose the best anchors first and look at their centers then."""
    # A flat box between the rows of centers 4 and 12, less a pixel: of the anchors 0 (row 0) and
    # 4 (row 1) it covers 3 x 8 and 4 x 8 pixels; only the center of 0 is inside.
    anchors = grid([(2, 1)], [8], [(1, 1)])
    box = torch.tensor([[0.0, 3.5, 8, 11.9]])
    assert TopKMatcher(topk=2)(anchors, [box]).tolist() == [[0, -1]]
    # 4.5 x 8 of the first against 3.9 x 8 of the second: the first is the best.
    assert TopKMatcher(topk=1)(anchors, [box]).tolist() == [[0, -1]]
    box = torch.tensor([[0.0, 3.9, 8, 12.005]])  # 4.1 against 4.005; the margin of 12 is 0.005
    assert TopKMatcher(topk=2)(anchors, [box]).tolist() == [[0, -1]]
    assert TopKMatcher(topk=2, center_epsilon=0.0)(anchors, [box]).tolist() == [[0, 0]]
    box = torch.tensor([[0.0, 3.995, 8, 12.2]])  # 4.005 against 4.2: the second is the best
    assert TopKMatcher(topk=1)(anchors, [box]).tolist() == [[-1, 0]]
    box = torch.tensor([[0.0, 4.5, 8, 11.995]])  # 3.5 against 3.995; neither center is inside
    assert (TopKMatcher(topk=1)(anchors, [box]) == BACKGROUND).all()


def test_among_equal_ious_the_nearer_center_is_taken():
    # All anchors that hold the box have the IoU 16 / 1024. Their centers are 4, 12, 20, 28 in x
    # and y; that of the box is (19, 19): the nearest are 10 (20, 20), then 6 (20, 12) and 9
    # (12, 20), at equal distance the lower index first, then 11 (28, 20). Only 10 is inside.
    anchors = grid([(4, 4)], [8], [(4, 4)])
    box = torch.tensor([[17.0, 17, 21, 21]])
    for topk, expected in ((1, [10]), (2, [6, 10]), (3, [6, 9, 10]), (4, [6, 9, 10, 11])):
        matched = TopKMatcher(topk=topk, center_epsilon=None)(anchors, [box])
        assert positives(matched) == expected
        assert positives(TopKMatcher(topk=topk)(anchors, [box])) == [10]


def test_among_equally_good_ones_the_lower_anchor_is_taken():
    # A quarter of each of the anchors 5, 6, 9, 10 is covered, their centers are equally far.
    anchors = grid([(4, 4)], [8], [(1, 1)])
    box = torch.tensor([[12.0, 12, 20, 20]])
    assert positives(TopKMatcher(topk=3, center_epsilon=None)(anchors, [box])) == [5, 6, 9]


def test_the_penalty_by_hand():
    # The box is 100 x 100. The anchor A is the box moved by 1 px: IoU 9900 / 10100 = 0.980198,
    # distance 1. B has the same center and is 101.98 px high: IoU 10000 / 10198 = 0.980584.
    # C is 102.03 px high: IoU 10000 / 10203 = 0.980104, 0.000094 below that of A. With d_max = 1
    # A loses 0.001: C is better. A box 99 px to the left makes it d_max = 100 (to A): A loses
    # 0.00001 and is better than C.
    def anchor(x, height):
        return [x, 50 - height / 2, x + 100, 50 + height / 2]

    box = torch.tensor([[0.0, 0, 100, 100]])
    a, b, c = anchor(1, 100), anchor(0, 101.98), anchor(0, 102.03)

    def best(anchors, boxes):
        matched = TopKMatcher(topk=1)([torch.tensor(anchors)], [boxes])
        (index,) = (matched[0] == 0).nonzero().flatten().tolist()
        return index

    assert best([a, b], box) == 1
    assert best([a, c], box) == 1
    beside = torch.tensor([[-99.0, 0, 1, 100]])  # holds neither center: takes no anchor away
    assert best([a, b], torch.cat((box, beside))) == 1
    assert best([a, c], torch.cat((box, beside))) == 0
    # A box of another image, or one without area, does not count.
    assert TopKMatcher(topk=1)([torch.tensor([a, c])], [box, beside])[0].tolist() == [-1, 0]
    assert best([a, c], torch.cat((box, torch.tensor([[-99.0, 50, -99, 50]])))) == 1
    # Nor does an ignore region.
    flags = [torch.tensor([False, True])]
    matched = TopKMatcher(topk=1)([torch.tensor([a, c])], [torch.cat((box, beside))], flags)
    assert matched.tolist() == [[-1, 0]]


def test_the_inset_shortens_the_distances_to_the_sides():
    anchors = grid([(2, 2)], [8], [(1, 1)])
    box = torch.tensor([[3.4, 0, 11, 8]])  # the center (4, 4) is 0.6 px inside
    for inset, expected in ((0.0, [0]), (0.5, [0]), (0.6, [])):
        assert positives(TopKMatcher(inset=inset)(anchors, [box])) == expected


def test_an_anchor_goes_to_the_box_of_highest_iou():
    anchors = grid([(4, 4)], [8], [(1, 1)])
    # The anchor 5 is [8, 8, 16, 16]: IoU 64/100 with the first box, 64/81 with the others.
    boxes = torch.tensor([[7.0, 7, 17, 17], [8, 8, 17, 17], [7, 7, 16, 16]])
    matched = TopKMatcher(topk=1)(anchors, [boxes])
    assert matched[0].tolist() == [-1] * 5 + [1] + [-1] * 10


def test_a_box_away_from_all_anchors_gets_none():
    anchors = grid([(2, 2)], [8], [(1, 1)])
    boxes = torch.tensor([[-8.0, 0, -0.0, 8], [50, 50, 60, 60]])  # one of them touches an anchor
    for epsilon in (0.01, None):
        matched = TopKMatcher(center_epsilon=epsilon)(anchors, [boxes])
        assert (matched == BACKGROUND).all()


def test_a_single_anchor_at_the_center():
    """The largest distance is 0, by which nothing is divided."""
    anchors = [torch.tensor([[0.0, 0, 8, 8]])]
    assert TopKMatcher()(anchors, [torch.tensor([[1.0, 1, 7, 7]])]).tolist() == [[0]]
