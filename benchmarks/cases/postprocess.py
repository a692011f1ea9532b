"""From a head's maps to the detections of one image, and of a batch."""

from __future__ import annotations

import functools

import torch

from .. import scenes
from ..postprocessors import Postprocessor, check_equal, detections, groups
from ..results import Measurement, Target
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Post-processing"
CASE = "postprocess"


def steps(settings: Settings) -> list[Step]:
    """Returns steps by number of images."""
    return [
        Step(f"{num} images", functools.partial(_measure, settings, num))
        for num in settings.choose((1, 8), (2,))
    ]


def _measure(settings: Settings, num_images: int) -> list[Measurement]:
    size, num_classes = settings.choose((scenes.IMAGE_SIZE, 80), ((64, 96), 5))
    found = scenes.predictions(size, num_classes).to(settings.torch_device)
    with_centerness, without = groups(found, size, num_classes, num_images).values()
    num_above = sum(int((level.sigmoid() > 0.05).sum()) for level in found.logits)
    is_above = [
        (logits.sigmoid() * centerness.sigmoid()[:, None]).sqrt() > 0.2
        for logits, centerness in zip(found.logits, found.centerness)
    ]
    num_detections = len(detections(with_centerness[0])[1])
    scene = f"{num_images} x {size[0]} x {size[1]}, {num_classes} classes"
    return [
        _compare(
            settings,
            with_centerness,
            f"{scene}, centerness",
            f"Centerness, each image: {num_above} scores above ATSS's threshold, "
            f"{sum(int(x.sum()) for x in is_above)} above FCOS's; {num_detections} detections.",
        ),
        _compare(
            settings,
            without,
            f"{scene}, no centerness",
            f"No centerness, each image: the same {check_equal(without)} detections of all.",
        ),
    ]


def _compare(settings: Settings, group: list[Postprocessor], scene: str, note: str) -> Measurement:
    contestants = [Contestant(p.name, p.run, p.prepare) for p in group]
    with torch.no_grad():
        samples = race(contestants, settings)
    return Measurement(
        case=CASE,
        scene=scene,
        quantity="time",
        unit="s",
        samples=samples,
        ours=group[0].name,
        targets=() if settings.quick else tuple(Target(1.0, p.name) for p in group[1:]),
        notes=(note,),
    )
