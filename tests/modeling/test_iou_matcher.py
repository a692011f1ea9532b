"""RetinaNet's rule: Detectron2's Matcher, "in-GT", numbers by hand."""

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.matchers import BACKGROUND, IGNORED, IoUMatcher
from tests.matching_scenes import grid, scenes, stats_of


def by_detectron2(anchors, boxes, thresholds, allow_low_quality_matches):
    """(R,) of one image."""
    ious = pairwise_iou(Boxes(boxes), Boxes(torch.cat(anchors)))  # (M, R)
    matcher = Matcher(list(thresholds), [0, -1, 1], allow_low_quality_matches)
    idxs, labels = matcher(ious)
    return torch.where(labels == 1, idxs, torch.where(labels == 0, BACKGROUND, IGNORED))


@settings(max_examples=80, derandomize=True)
@given(scene=scenes("iou"), allow=st.booleans())
def test_equals_detectron2s_matcher(scene, allow):
    anchors, thresholds = scene.anchors, scene.options["thresholds"]
    # Detectron2 makes every anchor positive for a box that overlaps none.
    for boxes in scene.gt_boxes:
        overlaps = pairwise_iou(Boxes(boxes), Boxes(torch.cat(anchors)))
        boxes = boxes[(overlaps > 0).any(dim=1)]
        matcher = IoUMatcher(thresholds=thresholds, allow_low_quality_matches=allow)
        expected = by_detectron2(anchors, boxes, thresholds, allow)
        assert torch.equal(matcher(anchors, [boxes])[0], expected)


def test_equals_detectron2s_matcher_at_full_size():
    strides = [8, 16, 32, 64, 128]
    shapes = [(64 * 8 // s, 80 * 8 // s) for s in strides]
    anchors = grid(shapes, strides, [(4, 4), (5, 5), (4, 8), (8, 4)])
    corners = torch.rand(60, 2) * torch.tensor([600.0, 480.0])
    boxes = torch.cat((corners, corners + 10 + 200 * torch.rand(60, 2)), dim=1)
    matched = IoUMatcher()(anchors, [boxes])[0]
    assert torch.equal(matched, by_detectron2(anchors, boxes, (0.4, 0.5), True))
    assert (matched >= 0).sum() > 60
    assert (matched == IGNORED).sum() > 60


def test_thresholds_by_hand():
    # IoU with the box of 10 x 10: 1, 0.5, 0.4, 0.39.
    anchors = [torch.tensor([[0.0, 0, 10, w] for w in (10, 5, 4, 3.9)])]
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    matcher = IoUMatcher()
    assert matcher(anchors, [boxes]).tolist() == [[0, 0, IGNORED, BACKGROUND]]
    assert stats_of(matcher, anchors, [boxes])["num_ignored"] == 1
    matched = IoUMatcher(thresholds=(0.5, 0.5))(anchors, [boxes])
    assert matched.tolist() == [[0, 0, BACKGROUND, BACKGROUND]]


def test_every_best_anchor_of_a_box_is_positive():
    # IoU with the box of 10 x 10: 0.2, 0.1, 0.2; the best are a tie.
    anchors = [torch.tensor([[0.0, 0, 10, 2], [0, 4, 10, 5], [0, 8, 10, 10]])]
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    assert IoUMatcher()(anchors, [boxes]).tolist() == [[0, BACKGROUND, 0]]
    matcher = IoUMatcher(allow_low_quality_matches=False)
    assert (matcher(anchors, [boxes]) == BACKGROUND).all()


def test_a_best_anchor_belongs_to_the_box_of_its_own_highest_iou():
    # IoU of the anchor with the first box is 0.2, the best that this box has; with the second 0.3.
    anchors = [torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 3]])]
    boxes = torch.tensor([[0.0, 0, 10, 2], [0, 7, 10, 10]])
    assert IoUMatcher()(anchors, [boxes]).tolist() == [[1, BACKGROUND]]


def test_a_best_anchor_belongs_to_its_box_if_low_quality_overrides():
    anchors = [torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 3]])]
    boxes = torch.tensor([[0.0, 0, 10, 2], [0, 7, 10, 10]])
    matcher = IoUMatcher(low_quality_override=True)
    assert matcher(anchors, [boxes.flip(0)]).tolist() == [[1, BACKGROUND]]
    # It is the best anchor of both; the last box has it, whatever the IoU.
    assert matcher(anchors, [boxes]).tolist() == [[1, BACKGROUND]]
    no_best = IoUMatcher(low_quality_override=True, allow_low_quality_matches=False)
    assert no_best(anchors, [boxes]).tolist() == [[BACKGROUND] * 2]


def test_a_box_that_overlaps_no_anchor_makes_none_positive():
    anchors = grid([(2, 2)], [8], [(1, 1)])
    boxes = torch.tensor([[100.0, 100, 120, 120], [0, 0, 8, 8]])
    assert IoUMatcher()(anchors, [boxes]).tolist() == [[1] + [BACKGROUND] * 3]
    assert (IoUMatcher()(anchors, [boxes[:1]]) == BACKGROUND).all()


def test_positives_with_a_center_outside_of_their_box_are_ignored():
    # IoU 0.5 and a center on the edge; IoU 0.6 and a center 1 px inside; the best, IoU 0.1 of a
    # second box, with a center outside.
    anchors = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [40, 0, 50, 10]])]
    boxes = torch.tensor([[0.0, 0, 5, 10], [0, 0, 6, 10], [40, 0, 41, 10]])
    plain = IoUMatcher()(anchors, [boxes[:1], boxes[1:]])
    assert plain.tolist() == [[0, 0, -1], [0, 0, 1]]
    matcher = IoUMatcher(center_in_gt=True)
    assert matcher(anchors, [boxes[:1], boxes[1:]]).tolist() == [[-2, -2, -1], [0, 0, -2]]
    assert stats_of(matcher, anchors, [boxes[:1], boxes[1:]])["num_ignored"] == 1.5
    for options, inside in (
        ({"center_epsilon": 0.99}, True),
        ({"center_epsilon": 1.0}, False),
        ({"inset": 0.98}, True),
        ({"inset": 1.0}, False),
    ):
        matched = IoUMatcher(center_in_gt=True, **options)(anchors, [boxes[1:]])
        assert (matched[0, 0] == 0) == inside, options
