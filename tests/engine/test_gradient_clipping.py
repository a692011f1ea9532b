"""Gradient clipping: norms by hand, the place in the training step, AMP's scaler."""

import types

import pytest
import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from atss_d2.engine.gradient_clipping import GradientClippingHook


class Line(nn.Module):
    """Loss 3 a + 4 b: a gradient of norm 5."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))
        self.b = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, _):
        return {"loss": 3 * self.a + 4 * self.b}


def train_one_step(max_norm):
    model = Line()
    optimizer = torch.optim.SGD([model.a, model.b], lr=1.0)
    trainer = SimpleTrainer(model, [None], optimizer)
    trainer.register_hooks([GradientClippingHook(model, max_norm=max_norm)])
    trainer.train(0, 1)
    # Before clipping.
    assert trainer.storage.latest()["atss/gradient_norm"] == (5.0, 0)
    return -model.a.item(), -model.b.item()


def test_large_gradients_are_scaled_before_the_step_and_small_ones_stay():
    assert train_one_step(max_norm=1.0) == pytest.approx((0.6, 0.8), abs=1e-5)
    assert train_one_step(max_norm=6.0) == pytest.approx((3.0, 4.0))


def test_amp_gradients_are_unscaled_first():
    model = Line()
    calls = []

    class Scaler:
        def unscale_(self, optimizer):
            calls.append(optimizer)
            for p in (model.a, model.b):
                p.grad /= 1000

    hook = GradientClippingHook(model, max_norm=1.0)
    hook.trainer = types.SimpleNamespace(grad_scaler=Scaler(), optimizer="the optimizer")
    model.a.grad, model.b.grad = torch.tensor(300.0), torch.tensor(400.0)  # norm 0.5 x 1000
    hook.after_backward()
    assert calls == ["the optimizer"]
    assert (model.a.grad.item(), model.b.grad.item()) == pytest.approx((0.3, 0.4))


@pytest.mark.parametrize("max_norm", [0, -1.0])
def test_norm_must_be_positive(max_norm):
    with pytest.raises(ValueError, match="max_norm must be > 0"):
        GradientClippingHook(Line(), max_norm=max_norm)
