"""Test-time augmentation: the merge of the passes."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from atss_d2 import DenseDetectorWithTTA
from tests.spots import Spots, detect, picture


class Scripted(Spots):
    """Gives the next of several lists of detections (score, class, box) for each image."""

    def __init__(self, *passes):
        super().__init__()
        self.passes = list(passes)

    def detect(self, image):
        rows = self.passes.pop(0)
        instances = Instances(tuple(image.shape[1:]))
        instances.pred_boxes = Boxes(torch.tensor([r[2] for r in rows]).float().reshape(-1, 4))
        instances.scores = torch.tensor([r[0] for r in rows])
        instances.pred_classes = torch.tensor([r[1] for r in rows], dtype=torch.int64)
        return instances


# IoU of the first two 0.8, of these with the third 0.3 or less; another class.
ONE = [(0.6, 0, [0, 0, 10, 10]), (0.2, 5, [0, 0, 10, 10])]
TWO = [(0.3, 0, [0, 0, 10, 8]), (0.5, 0, [0, 7, 10, 17])]


def merged(*passes, **options):
    model = Scripted(*passes)
    sizes = [40] * len(passes)
    model = DenseDetectorWithTTA(model, min_sizes=sizes, flip=False, batch_size=1, **options)
    return detect(model, picture())


def test_merges_by_hand():
    for merge, height in (("nms", 10), ("vote", (6 + 0.3 * 8) / 0.9)):
        boxes, scores, classes = merged(ONE, TWO, merge=merge)
        torch.testing.assert_close(scores, torch.tensor([0.6, 0.5, 0.2]))
        assert classes.tolist() == [0, 0, 5]
        torch.testing.assert_close(boxes[0], torch.tensor([0.0, 0, 10, height]))
        # The model's own threshold is 0.6.
        assert len(merged(ONE, TWO, merge=merge, iou_thresh=0.81)[0]) == 4
    boxes, scores, classes = merged(ONE, TWO, merge="soft_vote")
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.5, 0.2, 0.3 * 0.2]))
    assert classes.tolist() == [0, 0, 5, 0]
    assert boxes[3].tolist() == [0, 0, 10, 8]
    assert len(merged(ONE, TWO, merge="soft_vote", soft_vote_score_thresh=0.07)[0]) == 3


def test_voting_starts_at_an_iou_of_0_66():
    passes = ([(0.6, 0, [0, 0, 10, 10])], [(0.3, 0, [0, 0, 10, 6.7])], [(0.2, 0, [0, 0, 10, 6.5])])
    for merge in ("vote", "soft_vote"):
        _, scores, _ = merged(*passes, merge=merge, soft_vote_score_thresh=0.5)
        torch.testing.assert_close(scores, torch.tensor([0.6, 0.2]))


def test_of_equal_scores_the_first_pass_leads():
    passes = [[(0.5, 0, [x, 0, x + 10, 10])] for x in (0, 3, 6)]  # IoU 7 / 13 or 4 / 16
    boxes, _, _ = merged(*passes, merge="vote", iou_thresh=0.5)
    torch.testing.assert_close(boxes, torch.tensor([[1.5, 0, 11.5, 10], [6, 0, 16, 10]]))


@pytest.mark.parametrize("merge", ["nms", "vote", "soft_vote"])
def test_passes_without_detections(merge):
    boxes, scores, _ = merged([], ONE, [], merge=merge)
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.2]))
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 0, 10, 10]] * 2))
    boxes, scores, classes = merged([], [], merge=merge)
    assert (boxes.shape, scores.shape, classes.dtype) == ((0, 4), (0,), torch.int64)


@pytest.mark.parametrize("merge", ["nms", "vote", "soft_vote"])
def test_the_best_detections_stay(merge):
    options = {"merge": merge, "max_detections_per_image": 2}
    _, scores, _ = merged(ONE, TWO, **options)
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.5]))
