"""DIoU and CIoU: torchvision's numbers where it has any, finite everywhere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss

from atss_d2.modeling.criterion.box_losses import ciou_loss, diou_loss, giou_loss
from tests.detector import random_boxes

LOSSES = {"diou": diou_loss, "ciou": ciou_loss}
THEIRS = {"diou": distance_box_iou_loss, "ciou": complete_box_iou_loss}


def test_the_aspect_ratio_by_hand():
    """Concentric, 4 x 2 in 4 x 8: IoU 1/4, centres coincide, aspect ratios 2 and 1/2."""
    box, target = torch.tensor([[0.0, 3, 4, 5]]), torch.tensor([[0.0, 0, 4, 8]])
    assert diou_loss(box, target).item() == pytest.approx(3 / 4, abs=1e-6)
    v = 4 / math.pi**2 * (math.atan(1 / 2) - math.atan(2)) ** 2
    assert ciou_loss(box, target).item() == pytest.approx(3 / 4 + v * v / (3 / 4 + v), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_are_torchvisions(name):
    ours = random_boxes(200).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    targets = random_boxes(200)
    loss, expected = LOSSES[name](ours, targets), THEIRS[name](theirs, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    (grad,) = torch.autograd.grad(loss.sum(), ours)
    (expected_grad,) = torch.autograd.grad(expected.sum(), theirs)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


def test_gradient_of_diou_in_float64():
    targets = random_boxes(20, torch.float64)
    boxes = random_boxes(20, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diou_loss(x, targets), (boxes,))


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=150, derandomize=True)
@given(numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=8, max_size=8))
def test_any_boxes_have_a_finite_loss_and_gradient(name, numbers):
    box, target = torch.tensor(numbers).view(2, 1, 4)
    box = box.clone().requires_grad_()
    loss = LOSSES[name](box, target)
    (grad,) = torch.autograd.grad(loss.sum(), box)
    assert loss.isfinite().all()
    assert loss.item() >= -1e-5
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("box", [[5.0, 5, 5, 5], [5.0, 5, 5, 9], [9.0, 9, 5, 5]], ids=str)
def test_boxes_without_area(name, box):
    """What ReLU makes of four negative distances; torchvision's CIoU of it is NaN."""
    box = torch.tensor([box]).requires_grad_()
    loss = LOSSES[name](box, torch.tensor([[2.0, 3, 12, 23]]))
    (grad,) = torch.autograd.grad(loss.sum(), box)
    assert loss.item() > 0.9
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    boxes, targets = random_boxes(20).to(dtype), random_boxes(20).to(dtype)
    loss = LOSSES[name](boxes, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](boxes.float(), targets.float()))


def test_a_perfect_box_costs_nothing():
    boxes = random_boxes(10)
    for loss in (giou_loss, diou_loss, ciou_loss):
        torch.testing.assert_close(loss(boxes, boxes), torch.zeros(10), rtol=0, atol=1e-5)
