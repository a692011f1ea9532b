"""From a file to a training example, in one process, like a worker of the loader."""

from __future__ import annotations

import dataclasses
import functools
import random

import numpy as np
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, DatasetMapper

import atss_d2
from atss_d2.data.mapper import BoxDatasetMapper

from ..results import Measurement, Target
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Data path"
CASE = "data_path"
OURS, KEEPING, DETECTRON2 = "BoxDatasetMapper", "with ignore regions", "Detectron2 DatasetMapper"
_DATA = "shapes_train"
_CONFIG = "demo/atss_mobilenetv2_shapes"
# Smaller differences between mappers do not matter: they are not worth a worker.
_LEAST_SPEED = 0.95


def steps(settings: Settings) -> list[Step]:
    """Returns one step."""
    return [Step(_DATA, functools.partial(_measure, settings))]


def _measure(settings: Settings) -> list[Measurement]:
    num = settings.choose(32, 2)
    images = DatasetCatalog.get(_DATA)[:num]
    augmentations = [
        instantiate(a) for a in atss_d2.get_config(_CONFIG).dataloader.train.mapper.augmentations
    ]
    common = {"is_train": True, "augmentations": augmentations, "image_format": "RGB"}
    mappers = {
        OURS: BoxDatasetMapper(**common),
        f"{OURS}, {KEEPING}": BoxDatasetMapper(**common, keep_ignored=True),
        DETECTRON2: DatasetMapper(**common),
    }

    def read(mapper: DatasetMapper) -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  (augmentations draw from the global state)
        for image in images:
            mapper(image)

    contestants = [Contestant(name, functools.partial(read, m)) for name, m in mappers.items()]
    samples = {
        name: [seconds / num for seconds in values]
        for name, values in race(contestants, settings).items()
    }
    measurement = Measurement(
        case=CASE,
        scene=f"images of {_DATA}",
        quantity="time per image",
        unit="s",
        samples=samples,
        ours=OURS,
        targets=() if settings.quick else (Target(_LEAST_SPEED, DETECTRON2),),
    )
    speeds = ", ".join(f"{name}: {1 / measurement.median(name):.0f}" for name in samples)
    return [dataclasses.replace(measurement, notes=(f"Images per second and worker: {speeds}.",))]
