"""Losses with soft targets: definitions, published numbers, finite differences."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.criterion import focal_loss
from atss_d2.modeling.criterion.distribution_focal_loss import (
    distribution_focal_loss,
    max_distance,
)
from atss_d2.modeling.criterion.focal_loss import sigmoid_focal_loss
from atss_d2.modeling.criterion.soft_target_losses import (
    matchability_aware_loss,
    quality_focal_loss,
    varifocal_loss,
)
from tests.reference import published_quality

LOSSES = {
    "quality": quality_focal_loss,
    "quality, gamma 1.5": functools.partial(quality_focal_loss, gamma=1.5),
    "varifocal": varifocal_loss,
    "varifocal, alpha 0.3": functools.partial(varifocal_loss, alpha=0.3, gamma=1.0),
    "matchability": matchability_aware_loss,
    "matchability, gamma 2": functools.partial(matchability_aware_loss, gamma=2.0),
}


def one_by_one(name, logits, labels, quality):
    """The losses (R, K), one entry after the other, in float64."""
    each = torch.zeros(logits.shape, dtype=torch.float64)
    for row, values in enumerate(logits.double()):
        for column, x in enumerate(values):
            if labels[row] < 0:
                continue
            y = quality[row].double() if labels[row] == column else torch.zeros(()).double()
            is_positive = bool(labels[row] == column)
            p = x.sigmoid()
            if name.startswith("quality"):
                gamma = 1.5 if "1.5" in name else 2
                each[row, column] = (p - y).abs() ** gamma * bce(x, y)
            elif name.startswith("varifocal"):
                alpha, gamma = (0.3, 1) if "0.3" in name else (0.75, 2)
                weight = y if is_positive and y > 0 else alpha * p**gamma
                each[row, column] = weight * bce(x, y)
            else:
                gamma = 2 if "gamma 2" in name else 1.5
                weight = 1 if is_positive else p**gamma
                each[row, column] = weight * bce(x, y**gamma)
    return each


def bce(x, y):
    return F.softplus(x) - x * y


def scene(seed, rows=40, classes=3, scale=4.0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, classes, generator=rng) * scale).to(dtype)
    labels = torch.randint(-1, classes + 1, (rows,), generator=rng)
    quality = torch.rand(rows, generator=rng)
    quality[::5] = 0
    quality[1::5] = 1
    return logits, labels, quality


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 12), classes=st.integers(1, 4))
def test_losses_equal_their_definitions(name, seed, rows, classes):
    logits, labels, quality = scene(seed, rows, classes)
    expected = one_by_one(name, logits, labels, quality).sum()
    torch.testing.assert_close(
        LOSSES[name](logits, labels, quality).double(), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("piece", [1, 7, 2**17])
def test_gradients_equal_finite_differences(name, piece, monkeypatch):
    monkeypatch.setattr(focal_loss, "_CPU_PIECE", piece)
    logits, labels, quality = scene(3, rows=9, dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels, quality.double()), logits)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_same_by_the_way_of_a_gpu(name, monkeypatch):
    logits, labels, quality = scene(4)
    results = []
    for is_on_cpu in (True, False):
        monkeypatch.setattr(focal_loss, "_is_on_cpu", lambda x, value=is_on_cpu: value)
        x = logits.clone().requires_grad_()
        loss = LOSSES[name](x, labels, quality)
        results.append((loss, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_same_for_a_compiler(name, monkeypatch):
    logits, labels, quality = scene(5)
    results = []
    for compiles in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda value=compiles: value)
        x = logits.clone().requires_grad_()
        loss = LOSSES[name](x, labels, quality)
        results.append((loss, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_extreme_logits_have_finite_gradients(name, value):
    _, labels, quality = scene(6)
    logits = torch.full((len(labels), 3), value, requires_grad=True)
    loss = LOSSES[name](logits, labels, quality)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_a_score_that_equals_its_target_has_a_finite_gradient(gamma, compiles, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiles)
    logits = torch.tensor([[30.0, 0.0], [0.0, 0.0]], requires_grad=True)
    labels, quality = torch.tensor([0, 1]), torch.tensor([1.0, 0.5])  # the very scores
    loss = quality_focal_loss(logits, labels, quality, gamma=gamma)
    (slope,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(slope).all()
    assert slope[[0, 1], [0, 1]].abs().max() < 1e-6
    assert slope[0, 1] > 0.1


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_anchors_and_the_targets_get_no_gradient(name):
    logits, labels, quality = scene(7)
    logits[labels < 0] = torch.inf
    logits.requires_grad_()
    quality.requires_grad_()
    loss = LOSSES[name](logits, labels, quality)
    loss.backward()
    assert torch.isfinite(loss)
    assert not logits.grad[labels < 0].any()
    assert quality.grad is None


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    logits, labels, quality = scene(8)
    logits = logits.to(dtype).requires_grad_()
    loss = LOSSES[name](logits, labels, quality)
    loss.backward()
    assert (loss.dtype, logits.grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(loss, LOSSES[name](logits.detach().float(), labels, quality))


@pytest.mark.parametrize(
    ("loss", "fits"),
    [
        (functools.partial(quality_focal_loss, gamma=-1.0), "gamma must be >= 0, got -1.0"),
        (functools.partial(varifocal_loss, alpha=0.0), "alpha must be > 0, got 0.0"),
    ],
)
def test_arguments_out_of_range(loss, fits):
    with pytest.raises(ValueError, match=fits):
        loss(*scene(0))


def test_shapes_that_do_not_fit():
    logits, labels, quality = scene(0)
    with pytest.raises(ValueError, match=r"got \(40, 3\), \(40,\) and \(39,\)"):
        quality_focal_loss(logits, labels, quality[1:])


def test_hard_targets_are_the_focal_loss():
    logits, labels, _ = scene(9)
    torch.testing.assert_close(
        quality_focal_loss(logits, labels, torch.ones(len(labels))),
        sigmoid_focal_loss(logits, labels, alpha=-1),
    )


def tensors(prefix, *names):
    numbers = published_quality()
    return [torch.from_numpy(np.asarray(numbers[f"{prefix}.{name}"])) for name in names]


def each_anchor(loss, *inputs):
    """The loss (R,) of each anchor."""
    return torch.stack([loss(*(x[i : i + 1] for x in inputs)) for i in range(len(inputs[0]))])


def test_quality_focal_loss_of_mmdetection():
    names = ("pred", "label", "score", "each", "weight", "value", "grad")
    logits, labels, quality, each, weight, value, grad = tensors("qfl", *names)
    logits.requires_grad_()
    loss = each_anchor(quality_focal_loss, logits, labels, quality)
    torch.testing.assert_close(loss, each, rtol=1e-5, atol=1e-7)
    weighted = (loss * weight).sum() / 37
    torch.testing.assert_close(weighted.double(), value, rtol=1e-5, atol=0)
    weighted.backward()
    torch.testing.assert_close(logits.grad, grad, rtol=1e-5, atol=1e-8)


def test_varifocal_loss_of_mmdetection():
    logits, target, each = tensors("vfl", "pred", "target", "each")
    quality, labels = target.max(dim=1)
    assert ((target > 0).sum(dim=1) <= 1).all()
    labels = torch.where(quality > 0, labels, target.shape[1])
    loss = each_anchor(varifocal_loss, logits, labels, quality)
    torch.testing.assert_close(loss, each.sum(dim=1), rtol=1e-5, atol=1e-6)


def test_distribution_focal_loss_of_mmdetection():
    names = ("pred", "target", "each", "grad", "weight", "value")
    logits, target, each, grad, weight, value = tensors("dfl", *names)
    logits.requires_grad_()
    loss = 0.25 * distribution_focal_loss(logits, target)  # GFL's weight is in their numbers
    torch.testing.assert_close(loss, each, rtol=1e-5, atol=1e-6)
    weighted = (loss * weight).sum() / 37
    torch.testing.assert_close(weighted.double(), value, rtol=1e-5, atol=0)
    weighted.backward()
    torch.testing.assert_close(logits.grad, grad, rtol=1e-5, atol=1e-8)


def test_distribution_focal_loss_by_hand():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    # 1.25 is between the bins 1 (weight 0.75) and 2 (0.25).
    expected = -(0.75 * np.log(0.2) + 0.25 * np.log(0.3))
    assert distribution_focal_loss(logits, torch.tensor([1.25])).item() == pytest.approx(expected)
    # A distance beyond the last bin, 3, counts as 2.9; a negative one as 0.
    assert max_distance(4) == pytest.approx(2.9)
    far = distribution_focal_loss(logits.expand(2, 4), torch.tensor([50.0, -3.0]))
    assert far.tolist() == pytest.approx([-(0.1 * np.log(0.3) + 0.9 * np.log(0.4)), -np.log(0.1)])


def test_distribution_focal_loss_gradients():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    distances = torch.tensor([0.0, 0.5, 1.0, 2.25, 3.9, 9.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, distances), logits)
