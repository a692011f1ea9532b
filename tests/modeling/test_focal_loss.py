"""The focal loss: its definition in loops, fvcore's version, and what it costs."""

import copy
import math

import fvcore.nn
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling import focal_loss as focal_loss_module
from atss_d2.modeling.focal_loss import sigmoid_focal_loss
from tests import reference
from tests.allocations import Allocations

GAMMAS = [0, 0.5, 1, 1.5, 2, 3.7]


def one_hot(labels, num_classes):
    """Targets (R, K) of labels 0..K."""
    return F.one_hot(labels, num_classes + 1)[:, :num_classes].float()


@pytest.mark.parametrize("alpha", [0.25, 0.6, 0.0, 1.0, -1])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("num_classes", [1, 4])
def test_focal_loss_is_its_definition(num_classes, gamma, alpha):
    logits = 4 * torch.randn(30, num_classes)
    labels = torch.randint(-1, num_classes + 1, (30,))
    loss = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    by_hand = reference.focal_loss(logits.tolist(), labels.tolist(), alpha=alpha, gamma=gamma)
    torch.testing.assert_close(loss.item(), by_hand, rtol=1e-5, atol=1e-6)


def test_defaults_are_those_of_the_paper():
    logits, labels = torch.randn(9, 3), torch.randint(0, 4, (9,))
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, labels),
        sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2.0),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("alpha", [0.25, -1])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("num_classes", [1, 7])
def test_focal_loss_and_gradient_are_fvcores(num_classes, gamma, alpha):
    ours = (3 * torch.randn(200, num_classes)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    labels = torch.randint(0, num_classes + 1, (200,))
    loss = sigmoid_focal_loss(ours, labels, alpha=alpha, gamma=gamma)
    expected = fvcore.nn.sigmoid_focal_loss(
        theirs, one_hot(labels, num_classes), alpha=alpha, gamma=gamma, reduction="sum"
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    (grad,), (expected_grad,) = (
        torch.autograd.grad(loss, ours),
        torch.autograd.grad(expected, theirs),
    )
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


def test_gamma_0_is_binary_cross_entropy():
    logits, labels = 5 * torch.randn(50, 3), torch.randint(0, 4, (50,))
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, labels, alpha=-1, gamma=0),
        F.binary_cross_entropy_with_logits(logits, one_hot(labels, 3), reduction="sum"),
    )


def test_ignored_anchors_have_neither_loss_nor_gradient():
    logits = torch.randn(6, 3).requires_grad_()
    labels = torch.tensor([0, -1, 3, -1, 2, -1])
    loss = sigmoid_focal_loss(logits, labels)
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits[::2], labels[::2]))
    (grad,) = torch.autograd.grad(loss, logits)
    assert (grad[1::2] == 0).all()
    assert (grad[::2] != 0).all()


@pytest.mark.parametrize("num_classes", [1, 5])
def test_all_background(num_classes):
    logits = torch.randn(20, num_classes)
    labels = torch.full((20,), num_classes)
    by_hand = reference.focal_loss(logits.tolist(), labels.tolist())
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, labels).item(), by_hand, rtol=1e-5, atol=0
    )


def test_no_anchors_or_only_ignored_ones():
    for logits, labels in (
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        (torch.randn(4, 3), torch.full((4,), -1)),
    ):
        logits.requires_grad_()
        loss = sigmoid_focal_loss(logits, labels)
        assert loss == 0
        (grad,) = torch.autograd.grad(loss, logits)
        assert (grad == 0).all()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("size", [30.0, 100.0, 1e4, 1e30])
def test_extreme_logits_give_finite_loss_and_gradient(size, gamma):
    # 2 x 8 rows: vectorised and scalar code underflow at different logits.
    logits = torch.tensor([[-size, size]]).repeat(16, 1).requires_grad_()
    labels = torch.tensor([0, 1, 2, -1] * 4)
    loss = sigmoid_focal_loss(logits, labels, gamma=gamma)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert grad.isfinite().all()
    # The logits of class 1 are right for label 1 and as wrong as can be for 0 and 2, where the
    # modulating factor is 1 and the loss is the logit; -size is wrong for label 0 only.
    expected = 4 * (0.25 * size + 0.75 * size) + 4 * 0.75 * size
    torch.testing.assert_close(loss.item(), expected, rtol=1e-5, atol=0)


def test_confident_and_right_costs_next_to_nothing():
    logits = torch.full((1000, 4), -12.0)
    labels = torch.arange(1000) % 5
    logits[labels < 4, labels[labels < 4]] = 12.0
    loss = sigmoid_focal_loss(logits, labels).item()
    assert abs(loss) < 1e-2  # of 1000 anchors; background terms of 9 per positive cancel


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = torch.randn(3000, 5).to(dtype).requires_grad_()
    labels = torch.randint(0, 6, (3000,))
    loss = sigmoid_focal_loss(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, sigmoid_focal_loss(logits.float(), labels), rtol=0, atol=0)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.dtype == dtype
    assert grad.isfinite().all()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [0.25, -1])
def test_gradient_of_the_focal_loss_in_float64(gamma, alpha):
    logits = (3 * torch.randn(6, 3, dtype=torch.float64)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, -1, 1])
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, labels, alpha=alpha, gamma=gamma), (logits,)
    )


def test_errors_of_the_focal_loss():
    with pytest.raises(ValueError, match="gamma must be >= 0, got -1"):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), gamma=-1)
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(6,\) and \(6,\)"):
        sigmoid_focal_loss(torch.zeros(6), torch.zeros(6, dtype=torch.int64))
