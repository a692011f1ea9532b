"""The endless order of training images, in batches of the whole job, from any batch on.

A *key* is an integer that stands for one use of one image: ``draw * size + index``, where ``size``
is the number of images, ``index`` that of the image, and ``draw`` counts its uses: the epoch for
samplers that use each image once an epoch.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from torch.utils.data import Sampler

__all__ = ["Epochs", "GlobalBatches", "SamplerBatches", "epochs_of"]


class Epochs:
    """The images of each epoch of one of Detectron2's samplers, drawn from one generator.

    Attributes:
        size: Number of images in the data set.
        num_uses: Maximum number of uses of an image in an epoch.
    """

    def __init__(
        self,
        size: int,
        draw: Callable[[torch.Generator], torch.Tensor] | None = None,
        *,
        num_uses: int = 1,
    ) -> None:
        """
        Args:
            size: Number of images in the data set.
            draw: Returns the indices of an epoch, (n,) int64, in their order; the default is
                Detectron2's shuffle of all images.
            num_uses: Maximum number of uses of an image in an epoch.
        """
        self.size = size
        self.num_uses = num_uses
        self._draw = draw or (lambda generator: torch.randperm(size, generator=generator))

    def draw(self, generator: torch.Generator, epoch: int) -> np.ndarray:
        """Returns the keys of an epoch, (n,) int64; epochs must be drawn in sequence."""
        indices = self._draw(generator).numpy()
        first = epoch * self.num_uses * self.size
        if self.num_uses == 1:
            return indices + first
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        uses = np.empty_like(indices)  # how many uses in this epoch are before this one
        uses[order] = np.arange(len(ordered)) - np.searchsorted(ordered, ordered)
        return indices + first + uses * self.size


def epochs_of(sampler: Sampler) -> tuple[Epochs, int] | None:
    """Returns the epochs of a sampler and its seed; None unless it is one of Detectron2's.

    A subclass may do anything and is not one of Detectron2's.
    """
    if type(sampler) is TrainingSampler:
        size, is_shuffled = sampler._size, sampler._shuffle
        return Epochs(size, None if is_shuffled else lambda _: torch.arange(size)), sampler._seed
    if type(sampler) is RandomSubsetTrainingSampler:
        return Epochs(sampler._size, lambda g: _subset(sampler, g)), sampler._seed
    if type(sampler) is RepeatFactorTrainingSampler:
        num_uses = int(sampler._int_part.max()) + 1
        epochs = Epochs(len(sampler._int_part), lambda g: _repeated(sampler, g), num_uses=num_uses)
        return epochs, sampler._seed
    return None


def _subset(sampler: RandomSubsetTrainingSampler, generator: torch.Generator) -> torch.Tensor:
    subset = sampler._indexes_subset
    if not sampler._shuffle:
        return subset
    return subset[torch.randperm(len(subset), generator=generator)]


def _repeated(sampler: RepeatFactorTrainingSampler, generator: torch.Generator) -> torch.Tensor:
    """Returns the images of an epoch, as the sampler does in a loop over all images."""
    rands = torch.rand(len(sampler._frac_part), generator=generator)
    repeats = sampler._int_part + (rands < sampler._frac_part).float()
    indices = torch.repeat_interleave(torch.arange(len(repeats)), repeats.long())
    if sampler._shuffle:
        indices = indices[torch.randperm(len(indices), generator=generator)]
    return indices


class GlobalBatches(Sampler):
    """Batches of the whole job, the same for any number of processes, of which each takes a part.

    The order is that of Detectron2's samplers in one process. Batches can be limited to images of
    one group (landscape or portrait) as with its ``aspect_ratio_grouping``, but before anything is
    loaded: an image waits until its group fills a batch. Iterating yields this process's keys of
    each batch. Whole epochs are skipped without a loop over their images.

    Attributes:
        seed: Seed of the order, the same in all processes.
        start: Number of batches to skip at the beginning.
    """

    def __init__(
        self,
        epochs: Epochs,
        *,
        batch_size: int,
        seed: int,
        groups: Sequence[int] | None = None,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            epochs: What an epoch has.
            batch_size: Images per batch over all processes.
            seed: Seed of the order, the same in all processes.
            groups: Group of each image; each batch has images of one group. Default: any images.
            start: Number of batches to skip at the beginning.
            rank: Number of this process: it takes images ``rank``, ``rank + world_size``, ...
            world_size: Number of processes.
        """
        self.seed = seed
        self.start = start
        self._groups = None if groups is None else np.asarray(groups)
        self._names = [0] if groups is None else np.unique(self._groups).tolist()
        self._epochs = epochs
        self._batch_size = batch_size
        self._part = slice(rank, None, world_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        waiting: dict[int, np.ndarray] = {}
        skipped = 0
        for epoch in itertools.count():
            batches = self._cut(self._epochs.draw(generator, epoch), waiting)
            here = min(self.start - skipped, len(batches))
            skipped += here
            for batch in batches[here:, self._part]:
                yield batch.tolist()

    def _cut(self, keys: np.ndarray, waiting: dict[int, np.ndarray]) -> np.ndarray:
        """Cuts the keys of an epoch into batches, in the order in which they get full.

        Args:
            keys: (n,).
            waiting: Keys of each group that have no batch yet; changed.

        Returns:
            (number of batches, batch size).
        """
        groups = 0 if self._groups is None else self._groups[keys % self._epochs.size]
        batches, ends = [], []
        for group in self._names:
            own = np.flatnonzero(np.broadcast_to(groups == group, keys.shape))
            before = waiting.get(group, keys[:0])
            rows = np.concatenate([before, keys[own]])
            num = len(rows) // self._batch_size
            waiting[group] = rows[num * self._batch_size :]
            batches.append(rows[: num * self._batch_size].reshape(num, self._batch_size))
            ends.append(own[np.arange(1, num + 1) * self._batch_size - len(before) - 1])
        return np.concatenate(batches)[np.argsort(np.concatenate(ends))]


class SamplerBatches(Sampler):
    """This process's batches of any other sampler, which yields only this process's indices.

    Batches before ``start`` are skipped by iterating over them, so the order continues if the
    sampler yields the same indices whenever it is iterated. The keys count the positions.

    Attributes:
        start: Number of batches to skip at the beginning.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        size: int,
        batch_size: int,
        groups: Sequence[int] | None = None,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """
        Args:
            sampler: Yields indices.
            size: Number of images in the data set.
            batch_size: Images per batch in this process.
            groups: As in :class:`GlobalBatches`, among the images of this process.
            start: Number of batches to skip at the beginning.
            rank: Number of this process.
            world_size: Number of processes.
        """
        self.start = start
        self._groups = groups
        self._sampler = sampler
        self._size = size
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[int]]:
        waiting = defaultdict(list)
        draws = itertools.count(self._rank, self._world_size)
        for draw, index in zip(draws, self._sampler):
            group = 0 if self._groups is None else self._groups[index]
            waiting[group].append(draw * self._size + int(index))
            if len(waiting[group]) == self._batch_size:
                yield waiting.pop(group)
