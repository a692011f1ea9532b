"""GIoU, DIoU and CIoU: by hand, the numbers of fvcore and torchvision, finite everywhere."""

import math

import fvcore.nn
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss

from atss_d2.modeling.criterion.box_losses import ciou_loss, diou_loss, giou_loss
from tests import reference
from tests.detector import random_boxes

LOSSES = {
    "giou": (giou_loss, fvcore.nn.giou_loss),
    "diou": (diou_loss, distance_box_iou_loss),
    "ciou": (ciou_loss, complete_box_iou_loss),
}
all_losses = pytest.mark.parametrize("name", LOSSES)


def test_giou_by_hand():
    boxes = torch.tensor(
        [
            [0.0, 0, 2, 2],  # the target itself
            [1, 0, 3, 2],  # intersection 2, union 6, hull 6: GIoU 1/3
            [2, 2, 4, 4],  # only a corner touches: union 8, hull 16: GIoU -1/2
            [8, 0, 10, 2],  # apart: union 8, hull 20: GIoU -3/5
        ]
    )
    targets = torch.tensor([[0.0, 0, 2, 2]]).expand(4, 4)
    torch.testing.assert_close(giou_loss(boxes, targets), torch.tensor([0, 2 / 3, 3 / 2, 8 / 5]))


def test_giou_is_its_definition():
    boxes, targets = random_boxes(200), random_boxes(200)
    loss = giou_loss(boxes, targets)
    by_hand = [
        1 - reference.giou(a, b) for a, b in zip(boxes.tolist(), targets.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(by_hand), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, giou_loss(targets, boxes))  # symmetric


def test_the_aspect_ratio_by_hand():
    """Concentric, 4 x 2 in 4 x 8: IoU 1/4, centers coincide, aspect ratios 2 and 1/2."""
    box, target = torch.tensor([[0.0, 3, 4, 5]]), torch.tensor([[0.0, 0, 4, 8]])
    assert diou_loss(box, target).item() == pytest.approx(3 / 4, abs=1e-6)
    v = 4 / math.pi**2 * (math.atan(1 / 2) - math.atan(2)) ** 2
    assert ciou_loss(box, target).item() == pytest.approx(3 / 4 + v * v / (3 / 4 + v), abs=1e-6)


@all_losses
def test_values_and_gradients_are_those_of_others(name):
    loss_of, others = LOSSES[name]
    ours = random_boxes(200).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    targets = random_boxes(200)
    loss, expected = loss_of(ours, targets), others(theirs, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(loss.sum(), ours)
    (expected_grad,) = torch.autograd.grad(expected.sum(), theirs)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["giou", "diou"])  # CIoU's alpha is a constant to its gradient
def test_gradient_in_float64(name):
    targets = random_boxes(20, torch.float64)
    boxes = random_boxes(20, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name][0](x, targets), (boxes,))


def check_range(name, box, target):
    """A loss in its range and a finite gradient."""
    box = box.clone().requires_grad_()
    loss = LOSSES[name][0](box, target)
    (grad,) = torch.autograd.grad(loss.sum(), box)
    assert -1e-5 <= loss.item() <= (2 + 1e-5 if name == "giou" else math.inf)
    assert grad.isfinite().all()
    return loss.item()


@all_losses
@pytest.mark.parametrize(
    "box",
    [
        [5.0, 5, 5, 5],  # what ReLU makes of four negative distances; torchvision's CIoU: NaN
        [5.0, 5, 5, 9],
        [9.0, 5, 5, 9],  # inverted in x
        [9.0, 9, 5, 5],  # inverted in both
        [0.0, 0, 0, 0],
        [2.0, 3, 12, 23],  # the target
        [2.0, 3, 2, 23],  # an edge of the target
        [-64000.0, -64000, 64000, 64000],
        [-1e9, -1e9, 1e9, 1e9],
        [1e9, 1e9, 2e9, 2e9],
        [1e9, 1e9, -1e9, -1e9],
        [-1e18, -1e18, 1e18, 1e18],
        [1e-20, 1e-20, 2e-20, 2e-20],
    ],
    ids=str,
)
def test_any_box_has_a_finite_loss_and_gradient(name, box):
    for target in ([2.0, 3, 12, 23], [5.0, 5, 5, 5], [0.0, 0, 0, 0]):
        loss = check_range(name, torch.tensor([box]), torch.tensor([target]))
        if target[0] < target[2] and (box[0] >= box[2] or box[1] >= box[3]):
            assert loss > 0.9


@all_losses
@settings(max_examples=100, derandomize=True)
@given(numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=8, max_size=8))
def test_arbitrary_numbers_have_a_finite_loss_and_gradient(name, numbers):
    check_range(name, *torch.tensor(numbers).view(2, 1, 4))


def test_inverted_boxes_are_pulled_toward_the_target():
    """Area and intersection of an inverted box are 0, but the hull shrinks with its far corner."""
    target = torch.tensor([[10.0, 10, 20, 20]])
    box = torch.tensor([[40.0, 40, 30, 30]]).requires_grad_()
    (grad,) = torch.autograd.grad(giou_loss(box, target).sum(), box)
    assert (grad[0, 2:] > 0).all()


@all_losses
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    boxes, targets = random_boxes(20).to(dtype), random_boxes(20)
    loss = LOSSES[name][0](boxes, targets)
    assert loss.dtype == torch.float32
    expected = LOSSES[name][0](boxes.float(), targets)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
