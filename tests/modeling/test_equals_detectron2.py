"""Our class with switches equals Detectron2's RetinaNet and FCOS: same weights, same numbers.

Equal: names and shapes of all weights; logits, deltas, centerness; labels; each loss times its
normalizer; gradients; detections. ``test_differs_from_detectron2.py`` has what is not.
"""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from tests import detectron2_models as d2
from tests.detectron2_pairs import (
    EVERYTHING,
    PAIRS,
    RETINANETS,
    check_detections,
    labels_of,
    num_positives,
    random_batch,
    retinanets,
)
from tests.toy import CHANNELS

# Names of the losses, Detectron2's and ours.
RETINANET_LOSSES = {"loss_cls": "loss_cls", "loss_box_reg": "loss_box_reg"}
FCOS_LOSSES = {
    "loss_fcos_cls": "loss_cls",
    "loss_fcos_loc": "loss_box_reg",
    "loss_fcos_ctr": "loss_centerness",
}


@pytest.mark.parametrize("pair", PAIRS)
def test_outputs_of_the_head(pair):
    theirs, ours = pair()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    features = [torch.randn(2, CHANNELS, 8, 12), torch.randn(2, CHANNELS, 4, 6)]
    torch.testing.assert_close(
        [list(x) for x in ours.head(features)],
        [list(x) for x in theirs.head(features)],
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("pair", PAIRS)
def test_labels(pair):
    theirs, ours = pair()
    for seed in range(5):
        images = random_batch(seed, num_boxes=(1 + 2 * seed, 0, 2))
        labels, boxes = labels_of(ours, images)
        expected_labels, expected_boxes = labels_of(theirs, images)
        assert torch.equal(labels, expected_labels)
        is_positive = (labels >= 0) & (labels < d2.NUM_CLASSES)
        assert is_positive.any()
        assert torch.equal(boxes[is_positive], expected_boxes[is_positive])


def check_losses(pair, names):
    """Losses and gradients, each times its normalizer."""
    for images in (d2.batch(), [d2.image((), 0), d2.image((), 1)], random_batch(9)):
        theirs, ours = pair()
        count = num_positives(ours, images)
        expected = d2.losses_of(theirs, images)
        losses = d2.losses_of(ours, images)
        torch.testing.assert_close(
            {name: loss * count for name, loss in losses.items()},
            {names[name]: loss * theirs.loss_normalizer for name, loss in expected.items()},
            rtol=1e-5,
            atol=1e-6,
        )
        expected = d2.gradients_of(theirs, images)
        atol = 1e-6 * max(g.abs().max().item() for g in expected.values()) * theirs.loss_normalizer
        torch.testing.assert_close(
            {name: g * count for name, g in d2.gradients_of(ours, images).items()},
            {name: g * theirs.loss_normalizer for name, g in expected.items()},
            rtol=1e-4,
            atol=atol,
        )


@pytest.mark.parametrize("pair", PAIRS)
def test_losses_and_gradients(pair):
    check_losses(pair, RETINANET_LOSSES | FCOS_LOSSES)


@pytest.mark.parametrize(
    "options",
    [
        {"smooth_l1_beta": 0.11},
        {"box_reg_loss_type": "giou"},
        {"box_reg_loss_type": "diou"},
        {"box_reg_loss_type": "ciou"},
        {"box2box_transform": Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))},
    ],
    ids=["smooth L1", "GIoU", "DIoU", "CIoU", "other coder weights"],
)
def test_losses_and_gradients_of_retinanets_switches(options):
    check_losses(lambda: retinanets(9, **options), RETINANET_LOSSES)


@pytest.mark.parametrize("pair", RETINANETS)
@pytest.mark.parametrize("options", [{}, {"test_topk_candidates": 30}, EVERYTHING])
def test_detections_of_retinanet_inside_the_image(pair, options):
    """Boxes of at most a cell each: clipping changes nothing."""
    theirs, ours = pair(**options)
    for cells in theirs.anchor_generator.cell_anchors:
        cells *= 0.1
    for model in (theirs, ours):
        nn.init.normal_(model.head.bbox_pred.weight, std=0.001, generator=torch.manual_seed(1))
        nn.init.zeros_(model.head.bbox_pred.bias)
    images = [d2.image(seed=seed) for seed in (0, 1)]  # of one size: no anchors in padding
    for result in d2.detections_of(theirs, images):
        boxes = result.pred_boxes.tensor
        assert ((boxes > 0) & (boxes < torch.tensor([96, 64, 96, 64]))).all()
    check_detections(theirs, ours, images)


@pytest.mark.parametrize("pair", PAIRS)
def test_detections_without_suppression(pair):
    """With NMS out of the way it does not matter when boxes are clipped."""
    theirs, ours = pair(**EVERYTHING, test_nms_thresh=1.0)
    check_detections(theirs, ours, d2.batch(), least=50)
