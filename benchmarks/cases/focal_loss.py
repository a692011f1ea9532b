"""The focal loss forward and backward, from integer labels to the gradient of the logits."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from atss_d2.modeling.criterion.focal_loss import sigmoid_focal_loss

from .. import scenes
from ..memory import peaks
from ..results import Measurement, Target
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Focal loss"
CASE = "focal_loss"
OURS = "sigmoid_focal_loss"
FVCORE = "fvcore (TorchScript), one-hot targets"
TORCHVISION = "torchvision, one-hot targets"

_ALPHA, _GAMMA = 0.25, 2.0
_LEAST_SPEED_UP = 4.0
_LARGEST_SHARE_OF_MEMORY = 0.4
_POSITIVES = 0.003  # share of the anchors


def steps(settings: Settings) -> list[Step]:
    """Returns a step for each precision."""
    return [
        Step(str(dtype).removeprefix("torch."), functools.partial(_measure, settings, dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]


def one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    """Returns (R, K) targets as in Detectron2: background is a row of zeros."""
    return F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)


def ours(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes our loss, from integer labels."""
    return sigmoid_focal_loss(logits, labels, alpha=_ALPHA, gamma=_GAMMA)


def fvcore(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the loss that Detectron2 uses."""
    targets = one_hot(labels, logits)
    return sigmoid_focal_loss_jit(logits, targets, _ALPHA, _GAMMA, "sum")


def torchvision(logits: Tensor, labels: Tensor) -> Tensor:
    """Computes the loss that torchvision's detectors use."""
    targets = one_hot(labels, logits)
    return torchvision_focal_loss(logits, targets, _ALPHA, _GAMMA, "sum")


LOSSES = {OURS: ours, FVCORE: fvcore, TORCHVISION: torchvision}


def inputs(settings: Settings, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns logits (N x R, K) and labels (N x R,) of two images."""
    size = settings.choose(scenes.IMAGE_SIZE, (64, 96))
    num, num_classes = 2 * scenes.num_anchors(size), settings.choose(80, 5)
    generator = torch.Generator().manual_seed(0)
    logits = -4.6 + torch.randn(num, num_classes, generator=generator)
    labels = torch.full((num,), num_classes)
    positives = torch.randperm(num, generator=generator)[: max(int(_POSITIVES * num), 1)]
    labels[positives] = scenes.random_classes(len(positives), num_classes)
    device = settings.torch_device
    return logits.to(device, dtype).requires_grad_(), labels.to(device)


def _measure(settings: Settings, dtype: torch.dtype) -> list[Measurement]:
    logits, labels = inputs(settings, dtype)

    def forget() -> None:
        logits.grad = None

    contestants = [
        Contestant(name, lambda loss=loss: loss(logits, labels).backward(), forget)
        for name, loss in LOSSES.items()
    ]
    check_gradients(logits, labels)
    scene = f"{tuple(logits.shape)} {str(dtype).removeprefix('torch.')}, forward and backward"
    has_targets = dtype == torch.float32 and not settings.quick
    common = {"case": CASE, "scene": scene, "ours": OURS}
    return [
        Measurement(
            **common,
            quantity="time",
            unit="s",
            samples=race(contestants, settings),
            targets=(Target(_LEAST_SPEED_UP, FVCORE),) if has_targets else (),
        ),
        Measurement(
            **common,
            quantity="extra memory",
            unit="B",
            samples=peaks(contestants, settings),
            targets=(Target(1 / _LARGEST_SHARE_OF_MEMORY, FVCORE),) if has_targets else (),
        ),
    ]


def check_gradients(logits: Tensor, labels: Tensor) -> None:
    """Raises AssertionError if the losses or their gradients differ."""
    found = {}
    for name, loss in LOSSES.items():
        value = loss(logits, labels)
        (grad,) = torch.autograd.grad(value, logits)
        found[name] = value.detach().float(), grad.float()
    is_half = logits.dtype != torch.float32
    tolerance = {"rtol": 3e-2 if is_half else 1e-4, "atol": 1e-3 if is_half else 1e-6}
    for name, result in found.items():
        torch.testing.assert_close(
            result, found[OURS], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
