"""Half precision: forward, losses, and steps with a gradient scaler."""

from __future__ import annotations

import itertools

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from torch import nn

from atss_d2.engine.amp import GradScaler
from atss_d2.engine.gradient_clipping import GradientClippingHook
from atss_d2.engine.step import StepTrainer

from .. import scenes
from .registry import Environment, check, full_float32, require
from .small import mobile_detector

# Eight and eleven bits of mantissa, through a network of fifty layers with normalizations.
_LOSS_TOLERANCE = {torch.float16: 0.03, torch.bfloat16: 0.15}
_NUM_CLASSES = 6
_SCALE = 2.0**4


def _batch(size: tuple[int, int]) -> list[dict]:
    images = scenes.random_images(2, size)
    instances = scenes.ground_truth(2, 5, size, _NUM_CLASSES)
    return [{"image": image, "instances": x} for image, x in zip(images, instances)]


def _size(env: Environment) -> tuple[int, int]:
    return env.choose((256, 320), (64, 96))


def _losses(model: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        return model(batch)


def _half(env: Environment, dtype: torch.dtype) -> str:
    """Compares losses with those of float32; detects with finite boxes and scores."""
    full_float32()
    model, batch = mobile_detector().to(env.device).train(), _batch(_size(env))
    with env.branches():
        expected = _losses(model, batch)
        with torch.autocast(env.device, dtype=dtype):
            found = _losses(model, batch)
        sum(found.values()).backward()
        with torch.autocast(env.device, dtype=dtype), torch.no_grad():
            instances = model.eval()(batch[:1])[0]["instances"]
    worst = 0.0
    for name, loss in found.items():
        assert loss.dtype == torch.float32, f"{name} is {loss.dtype}"
        difference = (loss - expected[name]).abs() / expected[name].abs()
        worst = max(worst, difference.item())
        require(difference.item(), _LOSS_TOLERANCE[dtype], name)
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    assert len(instances), "nothing was detected"
    assert instances.pred_boxes.tensor.isfinite().all(), "boxes are not finite"
    return f"losses differ by at most {100 * worst:.1f} %, {len(instances)} detections"


@check("float16 autocast: losses beside float32, detections", seconds=15)
def float16(env: Environment) -> str:
    """The float16 forward and backward pass of the demo's detector."""
    return _half(env, torch.float16)


@check("bfloat16 autocast: losses beside float32, detections", seconds=15)
def bfloat16(env: Environment) -> str:
    """The bfloat16 forward and backward pass of the demo's detector."""
    return _half(env, torch.bfloat16)


@check(
    "the trainer's steps in float16; one with an infinite gradient is skipped, the scale halved",
    seconds=15,
)
def gradient_scaler(env: Environment) -> str:
    """Steps go on after a skipped one; the weights stay finite, and the loss falls."""
    model, batch = mobile_detector().to(env.device).train(), _batch(_size(env))
    trainer = StepTrainer(
        model,
        itertools.repeat(batch),
        torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        autocast_dtype=torch.float16,
        grad_scaler=GradScaler(env.device, init_scale=_SCALE),
    )
    watch = _Watch(model)
    trainer.register_hooks([watch, GradientClippingHook(model, max_norm=5.0)])
    weight = next(p for p in model.parameters() if p.requires_grad)
    weight.register_hook(lambda grad: grad * (torch.inf if trainer.iter == 1 else 1))
    steps = env.choose(10, 4)
    with env.branches():
        trainer.train(0, steps)
    assert watch.has_moved == [step != 1 for step in range(steps)], watch.has_moved
    assert all(p.isfinite().all() for p in model.parameters()), "weights are not finite"
    scale = trainer.grad_scaler.get_scale()
    assert scale == _SCALE / 2, f"the scale is {scale:g}"
    first, *_, last = watch.losses
    require(last, first, "loss of the last step")
    return f"{steps} steps, loss {first:.3f} to {last:.3f}, scale {_SCALE:g} to {scale:g}"


class _Watch(HookBase):
    """Records after every step whether weights have moved, and the total loss."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = list(model.parameters())
        self.has_moved: list[bool] = []
        self.losses: list[float] = []

    def before_step(self) -> None:
        self._before = [p.detach().clone() for p in self._weights]

    def after_step(self) -> None:
        self.has_moved.append(not all(map(torch.equal, self._before, self._weights)))
        self.losses.append(self.trainer.storage.history("total_loss").latest())
