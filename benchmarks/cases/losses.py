"""From predictions to gradients of the predictions: labels, losses, backward pass."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import atss_d2

from .. import scenes
from ..memory import peaks
from ..models import ATSS, FCOS, RETINANET, build
from ..pretend_gpu import pretend, pretended_gpu
from ..results import Measurement
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Labels and losses"
CASE = "losses"
ONE_ANCHOR = f"{RETINANET}, one anchor"
# Name -> how to build it.
DETECTORS: dict[str, Callable[..., nn.Module]] = {
    ATSS: functools.partial(build, ATSS),
    FCOS: functools.partial(build, FCOS),
    ONE_ANCHOR: functools.partial(build, RETINANET, num_anchors=1),
    RETINANET: functools.partial(build, RETINANET),
}
_NUM_IMAGES, _NUM_BOXES = 2, 10


def steps(settings: Settings) -> list[Step]:
    """Returns one step."""
    return [Step("two images", functools.partial(_measure, settings))]


def random_predictions(
    model: nn.Module, image_size: tuple[int, int], num_images: int
) -> list[list[Tensor]]:
    """Returns what the model's head might predict: logits, deltas and, if any, centerness."""
    generator = torch.Generator().manual_seed(0)
    (num_anchors,) = set(model.anchor_generator.num_anchors)
    parts = [(model.num_classes, -4.6), (4, 0.5), (1, 0.0)]  # channels per anchor, mean
    if isinstance(model, RetinaNet):
        del parts[2]
    return [
        [
            mean + torch.randn(num_images, num_anchors * channels, *size, generator=generator)
            for size in scenes.level_sizes(image_size)
        ]
        for channels, mean in parts
    ]


def training_pass(
    model: nn.Module,
    image_size: tuple[int, int],
    num_images: int,
    num_boxes: int,
    *,
    pretended: bool = False,
) -> tuple[Callable[[], dict[str, Tensor]], list[Tensor]]:
    """Returns a function that labels, computes losses and gradients; and the predictions.

    Args:
        model: Ours or one of Detectron2's.
        image_size: (height, width).
        num_images: N.
        num_boxes: M.
        pretended: Whether everything is on a pretended GPU, see :mod:`benchmarks.pretend_gpu`.
    """
    predictions = random_predictions(model, image_size, num_images)
    features = scenes.feature_maps(image_size, num_images)
    images = scenes.ground_truth(num_images, num_boxes, image_size, model.num_classes)
    if pretended:
        move = pretend
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, pretend(buffer))
    else:
        move = functools.partial(torch.Tensor.to, device=model.device)
    predictions = [[move(level).requires_grad_() for level in part] for part in predictions]
    features = [move(level) for level in features]
    for image in images:
        image.gt_boxes = Boxes(move(image.gt_boxes.tensor))
        image.gt_classes = move(image.gt_classes)

    if pretended:  # anchors are the same for all, and are not counted
        with pretended_gpu():
            anchors = model.anchor_generator(features)
        model.anchor_generator.forward = lambda features: anchors

    # Our log copies asynchronously on a real GPU; Detectron2's is part of its losses.
    has_log = not pretended or not isinstance(model, atss_d2.ATSS)

    def run() -> dict[str, Tensor]:
        with EventStorage() if has_log else contextlib.nullcontext():
            losses = model.forward_training(None, features, predictions, images)
        sum(losses.values()).backward()
        return losses

    return run, [level for part in predictions for level in part]


def _measure(settings: Settings) -> list[Measurement]:
    size, num_classes = settings.choose((scenes.IMAGE_SIZE, 80), ((64, 96), 5))
    contestants = []
    for name, detector in DETECTORS.items():
        model = detector(num_classes=num_classes).to(settings.torch_device).train()
        run, predictions = training_pass(model, size, _NUM_IMAGES, _NUM_BOXES)
        contestants.append(Contestant(name, run, functools.partial(forget_gradients, predictions)))
    common = {
        "case": CASE,
        "scene": f"{_NUM_IMAGES} x {size[0]} x {size[1]}, {num_classes} classes, "
        f"{_NUM_BOXES} boxes an image",
        "ours": ATSS,
    }
    return [
        Measurement(**common, quantity="time", unit="s", samples=race(contestants, settings)),
        Measurement(
            **common, quantity="extra memory", unit="B", samples=peaks(contestants, settings)
        ),
    ]


def forget_gradients(predictions: list[Tensor]) -> None:
    """Clears the gradients, as an optimizer does before a step."""
    for level in predictions:
        level.grad = None
