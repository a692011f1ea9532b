"""Where our class with switches differs from Detectron2's RetinaNet and FCOS; all else is equal.

both
    Losses are divided by the positives of the batch, averaged over all processes; Detectron2
    divides by a moving average of each process (start 100 or 300, momentum 0.9).
    Boxes are clipped to the image before NMS; in Detectron2 after it.
RetinaNet
    A box that overlaps no anchor gets no positive; in Detectron2 it makes all anchors of its image
    positive.
    ``norm="BN"`` in the head is one norm for all levels; in Detectron2 each level has its own.
FCOS
    ``test_score_thresh`` applies to the class score; in Detectron2 to sqrt(class x centerness).
    An anchor whose largest distance is exactly an upper end belongs to that level; in Detectron2
    to none. Of two boxes whose areas differ by a few square pixels the smaller one gets the
    anchor; in Detectron2, which rounds 1e8 - area to float32, it may be the first one. A box above
    1e8 square pixels gets no positives there.
"""

import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes

from tests import detectron2_models as d2
from tests.detectron2_pairs import (
    EVERYTHING,
    PAIRS,
    check_detections,
    fcoses,
    labels_of,
    num_positives,
    our_head,
    retinanets,
)


@pytest.mark.parametrize("pair", PAIRS)
def test_normalizers(pair):
    """Detectron2's is 0.9 x 100 (FCOS: 300) + 0.1 x positives after the first step."""
    theirs, ours = pair()
    count = num_positives(ours, d2.batch())
    expected, losses = d2.losses_of(theirs), d2.losses_of(ours)
    start = 300 if isinstance(theirs, FCOS) else 100
    ratio = (0.9 * start + 0.1 * count) / count
    first = next(iter(expected))
    torch.testing.assert_close(losses["loss_cls"], expected[first] * ratio, rtol=1e-5, atol=1e-6)
    again = d2.losses_of(ours)
    torch.testing.assert_close(again, losses)  # no memory


class ClippedFirst:
    """Detectron2's inference with one line more: clip."""

    def _decode_multi_level_predictions(self, *args):
        result = super()._decode_multi_level_predictions(*args)
        result.pred_boxes.clip(result.image_size)
        return result


class ClippedRetinaNet(ClippedFirst, RetinaNet):
    pass


class ClippedFCOS(ClippedFirst, FCOS):
    pass


@pytest.mark.parametrize("pair", PAIRS)
def test_boxes_are_clipped_before_nms(pair):
    options = {**EVERYTHING, "test_nms_thresh": 0.3}
    theirs, ours = pair(**options)
    clipped = ClippedFCOS if isinstance(theirs, FCOS) else ClippedRetinaNet
    counts = [[len(x) for x in d2.detections_of(model)] for model in (theirs, ours)]
    assert counts[0] != counts[1]
    theirs, ours = pair(**options, model_class=clipped)
    check_detections(theirs, ours, d2.batch())


def test_classes_suppress_each_other_at_negative_coordinates():
    """Why boxes are clipped first: the offset by class is the largest coordinate + 1."""
    boxes = torch.tensor([[-40.0, -40, 10, 10], [-30.0, -30, 20, 20]])
    shifted = boxes + torch.tensor([[21.0], [0.0]])  # class 1 and class 0
    assert (Boxes(shifted).area() > 0).all()
    scores, classes = torch.tensor([0.9, 0.8]), torch.tensor([1, 0])
    kept = batched_nms(boxes, scores, classes, 0.2)
    kept_clipped = batched_nms(boxes.clamp(min=0), scores, classes, 0.2)
    assert (len(kept), len(kept_clipped)) == (1, 2)


def test_a_box_that_overlaps_no_anchor():
    theirs, ours = retinanets(1)
    images = [d2.image([[6.0, 5, 40, 44], [200, 200, 220, 220]])]  # outside of the image
    labels, _ = labels_of(ours, images)
    expected, _ = labels_of(theirs, images)
    (plain,), _ = labels_of(ours, [d2.image([[6.0, 5, 40, 44]])])
    assert torch.equal(labels[0], plain)
    assert (labels == d2.NUM_CLASSES).any()
    assert (expected < d2.NUM_CLASSES).all()


def test_batch_norm_in_the_head():
    theirs = d2.retinanet(norm="BN")
    ours = our_head(9, norm="BN", with_centerness=False)
    assert "cls_subnet.1.0.running_mean" in theirs.head.state_dict()
    assert "cls_subnet.1.running_mean" in ours.state_dict()


def test_threshold_of_fcos():
    """Keep what Detectron2 keeps: a threshold of 0 on the class score, then one on the score."""
    options = {"max_detections_per_image": 10_000, "model_class": ClippedFCOS}
    theirs, _ = fcoses(**options, test_score_thresh=0.3)
    _, ours = fcoses(**options, test_score_thresh=0.0)
    for a, b in zip(d2.detections_of(theirs), d2.detections_of(ours), strict=True):
        kept = b[b.scores > 0.3]
        assert len(b) > len(kept) > 3
        torch.testing.assert_close(kept.scores, a.scores)
        torch.testing.assert_close(kept.pred_boxes.tensor, a.pred_boxes.tensor)
    _, ours = fcoses(**options, test_score_thresh=0.3)
    assert len(d2.detections_of(ours)[0]) != len(a)


def test_edges_of_the_rule_of_fcos():
    theirs, ours = fcoses()
    ours.matcher.radius = theirs.center_sampling_radius = 10.0
    first_of_p4 = len(d2.anchors_of(ours)[0])
    for on_the_end, at in (
        # (4, 4) of P3 is 64 px from the right side: the upper end of its range.
        ([0.0, 0, 68, 8], 0),
        # (8, 8) of P4 is 64 px from the right side: the lower end of its range.
        ([0.0, 0, 72, 16], first_of_p4),
    ):
        (labels,), _ = labels_of(ours, [d2.image([on_the_end])])
        (expected,), _ = labels_of(theirs, [d2.image([on_the_end])])
        assert (labels[at], expected[at]) == (0, d2.NUM_CLASSES)
        off_the_end = [d2.image([[*on_the_end[:2], on_the_end[2] - 0.1, on_the_end[3]]])]
        assert torch.equal(*(labels_of(model, off_the_end)[0] for model in (ours, theirs)))

    # 900 and 899 square pixels: 1e8 less either is the same float32.
    boxes = [d2.image([[10.0, 10, 40, 40], [10.0, 10, 41, 39]])]
    (labels,), _ = labels_of(ours, boxes)
    (expected,), _ = labels_of(theirs, boxes)
    is_differing = labels != expected
    assert is_differing.any()
    assert (labels[is_differing] == 1).all()
    assert (expected[is_differing] == 0).all()

    boxes = [d2.image([[-6000.0, -6000, 6000, 6000]])]
    (labels,), _ = labels_of(ours, boxes)
    (expected,), _ = labels_of(theirs, boxes)
    assert (labels == 0).any()
    assert (expected == d2.NUM_CLASSES).all()
