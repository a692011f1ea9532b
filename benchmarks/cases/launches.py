"""What assignment, losses and their backward pass ask of a GPU: launches and waits."""

from __future__ import annotations

import functools
from collections import Counter

from ..models import ATSS
from ..pretend_gpu import count
from ..results import Measurement, Target
from ..settings import Settings
from .losses import DETECTORS, training_pass
from .step import Step

TITLE = "Launches and waits of the host, labels and losses, forward and backward"
CASE = "launches"
_SIZE = (256, 416)  # the counts do not depend on it


def steps(settings: Settings) -> list[Step]:
    """Returns steps by number of images."""
    return [
        Step(f"{num} images", functools.partial(_measure, settings, num))
        for num in settings.choose((2, 8), (2,))
    ]


def _measure(settings: Settings, num_images: int) -> list[Measurement]:
    size, num_classes = settings.choose((_SIZE, 80), ((64, 96), 5))
    launches, waits, notes = {}, {}, []
    for name, detector in DETECTORS.items():
        model = detector(num_classes=num_classes).train()
        run, _ = training_pass(model, size, num_images, 10, pretended=True)
        calls, blocking = count(run)
        launches[name], waits[name] = [float(calls.total())], [float(blocking.total())]
        notes.append(f"{num_images} images, {name} waits for: {_words(blocking)}.")
        if name == ATSS and num_images == 2:  # the same for any number
            notes.append(f"{num_images} images, {name} launches: {_words(calls)}.")
    scene = f"{num_images} images, 10 boxes an image"
    common = {"case": CASE, "scene": scene, "unit": "", "ours": ATSS}
    targets = () if settings.quick else (Target(0.0),)
    return [
        Measurement(**common, quantity="launches", samples=launches),
        Measurement(**common, quantity="waits", samples=waits, targets=targets, notes=tuple(notes)),
    ]


def _words(counter: Counter[str]) -> str:
    return ", ".join(f"{name} ({num})" for name, num in counter.most_common()) or "nothing"
