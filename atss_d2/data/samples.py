"""Loads training samples whose random draws depend on nothing but the seed and the sample's key."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import Dataset

from .errors import DataError
from .seeding import seeded

__all__ = ["Problem", "Sample", "SeededSamples"]

_MAX_TRIES = 20  # for an image in the place of one that cannot be used
_SAMPLE, _REPLACEMENT = 1, 2  # what numbers are hashed for


class Problem(NamedTuple):
    """Why an image cannot be used."""

    file_name: str
    sentence: str  # names file, image id and cause
    details: str  # the traceback


class Sample(NamedTuple):
    """What the mapper returned, and the images that were tried before."""

    item: Any  # None if no image could be used
    problems: tuple[Problem, ...] = ()


class SeededSamples(Dataset):
    """Maps the images of a data set under generators seeded by (seed, epoch, index).

    The same sample comes out in any process, with any number of workers, and after a run was
    resumed. The generators of the process are not touched.

    An image that cannot be used is replaced by another one that follows from the same numbers, of
    the same group if there are groups. As with Detectron2, so is one for which the mapper returns
    None.

    Attributes:
        seed: Seed of the samples.
    """

    def __init__(
        self,
        dataset: Any,
        mapper: Callable[[Any], Any] | None,
        *,
        seed: int,
        skips_bad: bool = False,
        groups: Sequence[int] | None = None,
    ) -> None:
        """
        Args:
            dataset: A list or a map-style data set.
            mapper: Makes the model's input from an element; None returns the element.
            seed: Seed of the samples.
            skips_bad: Whether an image that raises an error is replaced; else the sample has no
                item, but the problem.
            groups: Group of each image.
        """
        self.seed = seed
        self._dataset = dataset
        self._mapper = PicklableWrapper(mapper or (lambda element: element))
        self._skips_bad = skips_bad
        self._groups = groups

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: int) -> Sample:
        """Loads the sample of a key of :mod:`atss_d2.data.order`."""
        draw, index = divmod(key, len(self._dataset))
        problems: list[Problem] = []
        for attempt, place in enumerate(self._places(draw, index)):
            try:
                with seeded(self.seed, _SAMPLE, draw, index, attempt):
                    item = self._mapper(self._dataset[place])
            except Exception as error:  # decoders and augmentations raise any type
                problems.append(_problem(self._dataset, place, error))
                if not self._skips_bad:
                    break
                continue
            if item is not None:
                return Sample(item, tuple(problems))
        return Sample(None, tuple(problems))

    def _places(self, draw: int, index: int) -> Iterator[int]:
        """Yields the index of the image and then those of images to take instead."""
        yield index
        if self._groups is None:
            others = np.arange(len(self._dataset))
        else:
            groups = np.asarray(self._groups)
            others = np.flatnonzero(groups == groups[index])
        numbers = np.random.default_rng((self.seed, _REPLACEMENT, draw, index))
        yield from numbers.permutation(others[others != index])[: _MAX_TRIES - 1].tolist()


def _problem(dataset: Any, index: int, error: Exception) -> Problem:
    """Describes an error of an image, whatever it is."""
    details = traceback.format_exc()
    try:
        element = dataset[index]
    except Exception:
        element = None
    element = element if isinstance(element, dict) else {}
    file_name = os.fspath(element.get("file_name", f"number {index} of the data set"))
    if isinstance(error, DataError) and file_name in str(error):
        return Problem(file_name, " ".join(str(error).split()), details)
    name = f"the image '{file_name}'"
    if "image_id" in element:
        name += f" (image_id {element['image_id']})"
    cause = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    return Problem(file_name, f"{name} cannot be used: {cause}", details)
