"""A test loader whose batches hold images of one size."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from detectron2.data import build_detection_test_loader
from torch.utils.data import DataLoader, Sampler


def same_size_batches(inputs: Iterable[dict], batch_size: int) -> Iterator[list[dict]]:
    """Collects inputs of a model into batches of images of one size.

    A batch of different sizes is padded, and GroupNorm takes the padding for a part of the image,
    so detections would depend on what else is in the batch.

    Args:
        inputs: Dicts with ``image`` (C, H, W). A batch is given as soon as it is full.
        batch_size: Images of a batch; the last ones of each size are fewer.
    """
    waiting = defaultdict(list)
    for x in inputs:
        size = x["image"].shape
        waiting[size].append(x)
        if len(waiting[size]) == batch_size:
            yield waiting.pop(size)
    yield from waiting.values()


class SameSizeBatches:
    """The images of a loader in :func:`same_size_batches`.

    Their order changes, which evaluators do not mind: they know images by their ids.
    """

    def __init__(self, loader: DataLoader, batch_size: int) -> None:
        """
        Args:
            loader: Gives lists of dicts with ``image`` (C, H, W), usually of one image each.
            batch_size: Most images of a batch.

        Raises:
            ValueError: ``batch_size`` is not at least 1.
        """
        if batch_size < 1:
            raise ValueError(f"dataloader.test.batch_size must be >= 1, got {batch_size}")
        self.loader = loader
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches if all images had one size; there may be more."""
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
    """Detectron2's ``build_detection_test_loader``, with batches of images of one size.

    Args:
        dataset: List of dicts in Detectron2's format, or a data set.
        mapper: Makes the model's input from such a dict.
        batch_size: Most images of a batch.
        num_workers: Processes that load images; 0: this one.
        sampler: Order of the images. Default: each once, shared out among the processes.

    Raises:
        ValueError: ``batch_size`` is not at least 1.
    """
    loader = build_detection_test_loader(
        dataset=dataset, mapper=mapper, num_workers=num_workers, sampler=sampler
    )
    return loader if batch_size == 1 else SameSizeBatches(loader, batch_size)
