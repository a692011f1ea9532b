"""Centerness by its definition in loops, and all losses by public implementations."""

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform

from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion.box_losses import giou_loss
from atss_d2.modeling.criterion.centerness import centerness_loss, centerness_targets
from atss_d2.modeling.criterion.focal_loss import sigmoid_focal_loss
from atss_d2.modeling.criterion.positives import loss_normalizers
from tests import reference
from tests.detector import random_boxes

published = reference.published()

# -------------------------------------------------------------------------------- centerness


def test_centerness_by_hand():
    anchors = torch.tensor([[-4.0, -4, 4, 4]]).repeat(6, 1)  # center (0, 0)
    boxes = torch.tensor(
        [
            [-5.0, -7, 5, 7],  # in the middle: 1
            [-1, -2, 4, 2],  # sqrt(1/4 x 1) = 1/2
            [-1, -1, 4, 9],  # sqrt(1/4 x 1/9) = 1/6
            [-0.1, -0.2, 0.1, 0.3],  # sqrt(1 x 2/3), however small the box is
            [0, -1, 4, 1],  # on the edge: 0
            [1, 1, 4, 4],  # outside: 0
        ]
    )
    expected = torch.tensor([1, 1 / 2, 1 / 6, (2 / 3) ** 0.5, 0, 0])
    torch.testing.assert_close(centerness_targets(anchors, boxes), expected)
    # 0.5 px less to each side: 0.5/3.5 and 1.5/1.5.
    targets = centerness_targets(anchors[1:2], boxes[1:2], inset=0.5)
    torch.testing.assert_close(targets, torch.tensor([(0.5 / 3.5) ** 0.5]))


@pytest.mark.parametrize("inset", [0.0, 0.5])
def test_centerness_is_its_definition(inset):
    anchors, boxes = random_boxes(300), random_boxes(300)
    boxes[::2] = anchors[::2] + 8 * torch.randn(150, 4)
    targets = centerness_targets(anchors, boxes, inset)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    by_hand = [
        reference.centerness(x, y, box, inset)
        for (x, y), box in zip(centers.tolist(), boxes.tolist(), strict=True)
    ]
    assert sum(value > 0 for value in by_hand) > 50
    torch.testing.assert_close(targets, torch.tensor(by_hand), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "box",
    [[0.0, 0, 0, 0], [3.0, 3, -3, -3], [-1e-30, -1e-30, 1e-30, 1e-30], [-1e9, -1e9, 1e9, 1e9]],
    ids=str,
)
def test_centerness_in_odd_boxes_is_in_range(box):
    target = centerness_targets(torch.tensor([[-4.0, -4, 4, 4]]), torch.tensor([box]))
    assert 0 <= target.item() <= 1


def test_centerness_loss_is_its_definition():
    logits = torch.cat((3 * torch.randn(20), torch.tensor([-100.0, 100.0, 1e4, -1e4])))
    targets = torch.cat((torch.rand(20), torch.tensor([0.0, 1.0, 1.0, 0.5])))
    logits.requires_grad_()
    loss = centerness_loss(logits, targets)
    by_hand = [
        reference.binary_cross_entropy(*pair)
        for pair in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(by_hand), rtol=1e-5, atol=1e-6)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(grad, (logits.sigmoid() - targets).detach(), rtol=1e-4, atol=1e-6)


def test_centerness_loss_in_other_precisions():
    targets = torch.rand(8)
    logits = torch.randn(8, dtype=torch.bfloat16)
    loss = centerness_loss(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, centerness_loss(logits.float(), targets), rtol=0, atol=0)
    double = torch.randn(8, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: centerness_loss(x, targets.double()), (double,))


def test_normalizers_of_one_process():
    for num_positives, sum_centerness, expected in (
        (7, 2.5, (7.0, 2.5)),
        (1, 0.25, (1.0, 0.25)),
        (3, 0.0, (3.0, 1e-6)),  # centers outside their boxes (min_positives)
        (0, 0.0, (1.0, 1e-6)),
    ):
        values = loss_normalizers(torch.tensor(num_positives), torch.tensor(sum_centerness))
        torch.testing.assert_close(values, tuple(map(torch.tensor, expected)))


# ---------------------------------------------------------------------------- public numbers


def flatten(prefix, boxes_of=None):
    """Published head outputs as (N x R, K), (N x R, 4) and (N x R,).

    Args:
        prefix: Whose outputs.
        boxes_of: Whose box regression, if it is another's.
    """
    outputs = []
    for name in ("cls", "reg", "ctr"):
        source = boxes_of if name == "reg" and boxes_of else prefix
        maps = [torch.from_numpy(published[f"{source}.{name}_{level}"]) for level in range(5)]
        outputs.append(torch.cat([m.permute(0, 2, 3, 1).flatten(1, 2) for m in maps], dim=1))
    logits, deltas, centerness = (x.flatten(0, 1) for x in outputs)
    return logits, deltas, centerness[:, 0]


def three_losses(predictions, anchors, labels, boxes, *, coder=None, inset=0.0, shrink=0.0):
    """The losses of two images from published predictions.

    Args:
        predictions: See ``flatten``.
        anchors: (R, 4).
        labels: (2, R); 5 is background, -1 ignored.
        boxes: (2, R, 4) matched boxes.
        coder: Box coder.
        inset: Of the centerness targets.
        shrink: Pixels taken off width and height of both boxes in the GIoU loss.
    """
    logits, deltas, centerness = predictions
    anchors, labels, boxes = anchors.repeat(2, 1), labels.flatten(), boxes.flatten(0, 1)
    is_positive = (labels >= 0) & (labels < 5)
    targets = centerness_targets(anchors, boxes, inset) * is_positive
    num_positives, sum_centerness = loss_normalizers(is_positive.sum(), targets.sum())
    pred_boxes = (coder or Box2BoxTransform((10.0, 10.0, 5.0, 5.0))).apply_deltas(deltas, anchors)
    by = torch.tensor([0.0, 0, shrink, shrink])
    box_loss = (giou_loss(pred_boxes - by, boxes - by) * targets).sum()
    ctr_loss = (centerness_loss(centerness, targets) * is_positive).sum()
    return (
        (sigmoid_focal_loss(logits, labels) / num_positives).item(),
        (2 * box_loss / sum_centerness).item(),
        (ctr_loss / num_positives).item(),
    )


def test_losses_are_those_of_mmdetection():
    shapes = published["level_shapes"].tolist()
    generator = DefaultAnchorGenerator(
        sizes=[[64], [128], [256], [512], [1024]],
        aspect_ratios=[1.0],
        strides=[8, 16, 32, 64, 128],
        offset=0.0,
    )
    anchors = torch.cat([a.tensor for a in generator([torch.zeros(1, 1, h, w) for h, w in shapes])])
    labels, boxes = [], []
    for i in range(2):
        assigned = torch.from_numpy(published[f"mmdet.assigned_{i}"]).long()
        classes = torch.from_numpy(published[f"gt_classes_{i}"]).long()
        gt_boxes = torch.from_numpy(published[f"gt_boxes_{i}"])
        labels.append(torch.where(assigned >= 0, classes[assigned], 5))
        boxes.append(torch.where((assigned >= 0)[:, None], gt_boxes[assigned], anchors))
    losses = three_losses(flatten("mmdet"), anchors, torch.stack(labels), torch.stack(boxes))
    theirs = tuple(published[f"mmdet.loss_{name}"].item() for name in ("cls", "bbox", "centerness"))
    torch.testing.assert_close(losses, theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("regression", ["box", "point"])
@pytest.mark.parametrize("rule", ["atss", "iou", "ssc"])
def test_losses_are_those_of_the_authors(rule, regression):
    anchors = torch.from_numpy(published["authors.atss_box.anchors"])
    variant = f"authors.{rule}_{regression}"
    labels, boxes = [], []
    for i in range(2):
        theirs = torch.from_numpy(published[f"{variant}.labels_{i}"]).long()
        matched = anchors.clone()
        matched[theirs > 0] = torch.from_numpy(published[f"{variant}.matched_boxes_{i}"])
        labels.append(torch.where(theirs > 0, theirs - 1, torch.where(theirs < 0, -1, 5)))
        boxes.append(matched)
    labels, boxes = torch.stack(labels), torch.stack(boxes)
    theirs = tuple(
        published[f"{variant}.loss_{name}"].item() for name in ("cls", "reg", "centerness")
    )
    predictions = flatten("authors.atss_box", boxes_of=f"authors.atss_{regression}")
    exact, ours = None, None  # box2box_transform
    if regression == "point":
        exact, ours = PointDistances(inset=0.5), PointDistances()
    # Inclusive corners: distances are 0.5 px shorter, and in the GIoU loss sides 1 px.
    losses = three_losses(predictions, anchors, labels, boxes, coder=exact, inset=0.5, shrink=1.0)
    torch.testing.assert_close(losses, theirs, rtol=2e-6, atol=0)
    # In continuous geometry the same predictions cost nearly the same.
    losses = three_losses(predictions, anchors, labels, boxes, coder=ours)
    torch.testing.assert_close(losses, theirs, rtol=0.05, atol=0)
