"""Half precision: forward, losses, and steps with a gradient scaler."""

from __future__ import annotations

import torch
from detectron2.utils.events import EventStorage
from torch import nn

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
    "steps in float16 with a gradient scaler; one with an infinite gradient is skipped", seconds=15
)
def gradient_scaler(env: Environment) -> str:
    """Steps go on after a skipped one, with half the scale; the weights stay finite."""
    model, batch = mobile_detector().to(env.device).train(), _batch(_size(env))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    scaler = torch.amp.GradScaler(env.device, init_scale=_SCALE)
    totals = []
    steps = env.choose(10, 4)
    for step in range(steps):
        with env.branches(), torch.autocast(env.device, dtype=torch.float16):
            loss = sum(_losses(model, batch).values())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        before = [p.detach().clone() for p in model.parameters()]
        if step == 1:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(torch.inf)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(b, p) for b, p in zip(before, model.parameters()))
        assert moved == (step != 1), f"step {step} {'was not' if step == 1 else 'was'} skipped"
        totals.append(loss.item())
    assert all(p.isfinite().all() for p in model.parameters()), "weights are not finite"
    assert scaler.get_scale() == _SCALE / 2, f"the scale is {scaler.get_scale():g}"
    require(totals[-1], totals[0], "loss of the last step")
    return f"{steps} steps, loss {totals[0]:.3f} to {totals[-1]:.3f}, scale {scaler.get_scale():g}"
