"""A test loader with batches of same-size images."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from detectron2.data import build_detection_test_loader
from torch.utils.data import DataLoader, Sampler

from .workers import with_default_workers


def same_size_batches(
    inputs: Iterable[dict], batch_size: int, *, max_waiting: int | None = None
) -> Iterator[list[dict]]:
    """Groups model inputs into batches of images of the same size.

    A batch of different sizes is padded, and GroupNorm treats the padding as part of the image, so
    detections would depend on the rest of the batch.

    Args:
        inputs: Dicts with ``image`` (C, H, W). A batch is yielded as soon as it is full.
        batch_size: Images per batch; the last batch of each size may be smaller.
        max_waiting: Maximum number of images that wait for others of their size. Beyond it, the
            size that has waited longest is yielded, however few its images. Default: no limit.
    """
    waiting = defaultdict(list)
    num_waiting = 0
    for x in inputs:
        size = x["image"].shape
        waiting[size].append(x)
        num_waiting += 1
        if len(waiting[size]) < batch_size:
            if max_waiting is None or num_waiting <= max_waiting:
                continue
            size = next(iter(waiting))
        num_waiting -= len(waiting[size])
        yield waiting.pop(size)
    yield from waiting.values()


class SameSizeBatches:
    """The images of a loader in :func:`same_size_batches`.

    Their order changes, but evaluators identify images by their ids.
    """

    def __init__(self, loader: DataLoader, batch_size: int) -> None:
        """
        Args:
            loader: Yields lists of dicts with ``image`` (C, H, W), usually one image per list.
            batch_size: Maximum number of images per batch.

        Raises:
            ValueError: ``batch_size`` is less than 1.
        """
        if batch_size < 1:
            raise ValueError(f"dataloader.test.batch_size must be >= 1, got {batch_size}")
        self.loader = loader
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Returns the minimum number of batches, reached if all images have the same size."""
        return -(-len(self.loader) // self.batch_size)

    def __iter__(self) -> Iterator[list[dict]]:
        images = itertools.chain.from_iterable(self.loader)
        return same_size_batches(images, self.batch_size)


def build_test_loader(
    dataset,
    *,
    mapper: Callable[[dict], dict],
    batch_size: int = 1,
    num_workers: int = 0,
    sampler: Sampler | None = None,
) -> DataLoader | SameSizeBatches:
    """Builds a test loader like ``build_detection_test_loader``, with batches of same-size images.

    Args:
        dataset: List of dicts in Detectron2's format, or a data set.
        mapper: Makes the model's input from such a dict.
        batch_size: Maximum number of images per batch.
        num_workers: Processes that load images; with 0, this process does.
        sampler: Order of the images. Default: each once, divided among the processes.

    Raises:
        ValueError: ``batch_size`` is less than 1.
    """
    loader = build_detection_test_loader(
        dataset=dataset, mapper=mapper, num_workers=num_workers, sampler=sampler
    )
    with_default_workers(loader)
    return loader if batch_size == 1 else SameSizeBatches(loader, batch_size)
