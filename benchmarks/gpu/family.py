"""What grew out of ATSS: labels by predictions, losses and heads on the device and on the CPU."""

from __future__ import annotations

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from atss_d2.modeling.dyhead import DyHeadBlock

from .. import scenes
from ..models import FAMILY, build
from .registry import Environment, check, full_float32, largest_difference, require

_LOSS, _GRADIENT = 1e-5, 1e-4
_NUM_CLASSES = 5
_AFTER_WARM_UP = 1_000_000  # an iteration


@check("a training step of each row of docs/quality.md, and where the host waits", seconds=40)
def family(env: Environment) -> str:
    """Labels follow from predictions, which therefore are in float64: no rounding changes them."""
    size = env.choose((256, 320), (32, 64))
    loss = gradient = 0.0
    for name in FAMILY:
        expected = _step(build(name, num_classes=_NUM_CLASSES).double(), size)
        model = build(name, num_classes=_NUM_CLASSES).double().to(env.device)
        with env.branches():
            found = _step(model, size)
            if env.is_cuda:
                _require_no_wait(model, size, name)
        losses = [largest_difference(found[0][key], expected[0][key]) for key in expected[0]]
        gradients = map(largest_difference, found[1], expected[1])
        loss, gradient = max(loss, *losses), max(gradient, *gradients)
        require(loss, _LOSS, f"losses of {name}")
        require(gradient, _GRADIENT, f"gradients of {name}")
    return f"{len(FAMILY)} rows: losses differ by {loss:.1e}, gradients by {gradient:.1e}"


def _inputs(model: nn.Module, size: tuple[int, int]) -> tuple[list[Tensor], list]:
    """Returns features and ground truth of two images, one without boxes."""
    generator = torch.Generator().manual_seed(0)
    channels = model.head.in_channels
    features = [
        torch.randn(2, channels, *level, generator=generator).to(model.device, torch.float64)
        for level in scenes.level_sizes(size)
    ]
    instances = scenes.ground_truth(2, 10, size, _NUM_CLASSES)
    instances[1] = instances[1][:0]
    return features, [x.to(model.device) for x in instances]


def _run(model: nn.Module, features: list[Tensor], instances: list) -> dict[str, Tensor]:
    model.zero_grad()
    with EventStorage(_AFTER_WARM_UP):
        losses = model.forward_training(None, features, model.head(features), instances)
    sum(losses.values()).backward()
    return losses


def _step(model: nn.Module, size: tuple[int, int]) -> tuple[dict[str, Tensor], list[Tensor]]:
    losses = _run(model.train(), *_inputs(model, size))
    gradients = [p.grad for p in model.head.parameters() if p.grad is not None]
    assert any(x.any() for x in gradients)
    return losses, gradients


def _require_no_wait(model: nn.Module, size: tuple[int, int], name: str) -> None:
    inputs = _inputs(model, size)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _run(model, *inputs)
    except RuntimeError as error:
        raise AssertionError(f"{name}: {error}") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


@check("a block of DyHead, forward and backward, both readings of the offsets", seconds=10)
def dyhead(env: Environment) -> str:
    """Three levels, float32."""
    full_float32()
    largest = 0.0
    for reading in ("resize", "flattened"):
        runs = []
        for device in ("cpu", env.device):
            torch.manual_seed(0)
            block = DyHeadBlock(in_channels=32, channels=32, offsets_of_upper_level=reading)
            maps = [torch.randn(2, 32, 32 >> i, 48 >> i) for i in range(3)]
            outputs = block.to(device)([x.to(device) for x in maps])
            sum((x * x).sum() for x in outputs).backward()
            runs.append([*outputs, *(p.grad for p in block.parameters())])
        largest = max(largest, *map(largest_difference, runs[1], runs[0]))
    require(largest, _GRADIENT, "outputs or gradients")
    return f"differs by {largest:.1e}"
