"""Training steps of what grew out of ATSS, R-50-FPN: what a better rule, loss or head costs."""

from __future__ import annotations

import functools

from .. import scenes
from ..models import ATSS, FAMILY, build
from ..results import Measurement, Target
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step
from .training_step import training_steps

TITLE = "Training step of the quality heads"
CASE = "quality_steps"
_GFL = "GFL"
_MAX_RATIO = 1.05  # of GFL's step to ATSS's


def steps(settings: Settings) -> list[Step]:
    """Returns one step, for the time of all detectors in turns."""
    return [Step("time", functools.partial(_time, settings))]


def _time(settings: Settings) -> list[Measurement]:
    small = settings.choose((256, 416), (64, 96))
    size = scenes.IMAGE_SIZE if settings.full_size and not settings.quick else small
    contestants = [
        Contestant(name, *training_steps(build(name, with_backbone=True), settings, size))
        for name in (ATSS, *FAMILY)
    ]
    return [
        Measurement(
            case=CASE,
            scene=f"2 x {size[0]} x {size[1]}, 10 boxes an image, R-50-FPN",
            quantity="time",
            unit="s",
            samples=race(contestants, settings),
            ours=_GFL,
            targets=() if settings.quick else (Target(1 / _MAX_RATIO, ATSS),),
            notes=(
                f"Ratios are to {_GFL}. The target, a ratio of ATSS of at least 1 / {_MAX_RATIO}, "
                f"says that a step of {_GFL} takes at most {_MAX_RATIO} times as long as ATSS's.",
            ),
        )
    ]
