"""Non-maximum suppression per class: one call for all classes, or one for each."""

from __future__ import annotations

import functools

import torch
from detectron2.layers import batched_nms as detectron2_batched_nms
from torch import Tensor
from torchvision.ops import nms

from atss_d2.modeling.nms import batched_nms

from .. import scenes
from ..results import Measurement
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "NMS"
CASE = "nms"
OURS = "atss_d2"
_THRESHOLD = 0.6


def shifted(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Runs one NMS for all classes, shifted so far apart that they cannot overlap."""
    offsets = classes.to(boxes) * (boxes.max() + 1)
    return nms(boxes + offsets[:, None], scores, threshold)


def class_loop(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Runs one NMS for each class, with a mask for each."""
    kept = []
    for label in classes.unique():
        idxs = (classes == label).nonzero()[:, 0]
        kept.append(idxs[nms(boxes[idxs], scores[idxs], threshold)])
    keep = torch.cat(kept)
    return keep[scores[keep].argsort(descending=True)]


STRATEGIES = {
    OURS: batched_nms,
    "Detectron2 (torchvision) batched_nms": detectron2_batched_nms,
    "shifted by class": shifted,
    "loop over classes": class_loop,
}


def steps(settings: Settings) -> list[Step]:
    """Returns steps by number of candidates, and by their overlap."""
    numbers = settings.choose((100, 300, 1000, 5000), (50, 300))
    return [
        Step(f"{num} {kind}", functools.partial(_measure, settings, num, kind))
        for kind in SCENES
        for num in numbers
    ]


def scattered(num: int, num_classes: int = 80) -> tuple[Tensor, Tensor, Tensor]:
    """Returns random boxes (T, 4), scores (T,) and classes (T,); hardly any boxes overlap."""
    boxes = scenes.random_boxes(num, scenes.IMAGE_SIZE)
    scores = torch.linspace(0.95, 0.05, num)  # all different
    return boxes, scores, scenes.random_classes(num, num_classes)


def clustered(num: int, num_classes: int = 80) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the best candidates of an image with many objects; most overlap a better one."""
    found = scenes.predictions(scenes.IMAGE_SIZE, num_classes, num_objects=num_classes)
    scores, places = torch.cat(found.logits).sigmoid().flatten().topk(num)
    anchors = places.div(num_classes, rounding_mode="floor")
    boxes = torch.cat(found.boxes)[anchors].clamp(min=0)
    return boxes, scores, places % num_classes


SCENES = {"clustered": clustered, "scattered": scattered}


def _measure(settings: Settings, num: int, kind: str) -> list[Measurement]:
    arguments = [x.to(settings.torch_device) for x in SCENES[kind](num)]
    expected = STRATEGIES[OURS](*arguments, _THRESHOLD)
    for strategy in STRATEGIES.values():
        torch.testing.assert_close(strategy(*arguments, _THRESHOLD), expected)
    contestants = [
        Contestant(name, functools.partial(strategy, *arguments, _THRESHOLD))
        for name, strategy in STRATEGIES.items()
    ]
    num_found = len(arguments[2].unique())
    return [
        Measurement(
            case=CASE,
            scene=f"{num} {kind} candidates of {num_found} classes, {len(expected)} kept",
            quantity="time",
            unit="s",
            samples=race(contestants, settings),
            ours=OURS,
        )
    ]
