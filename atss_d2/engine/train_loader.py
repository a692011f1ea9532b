"""A training loader that can continue the order of images where an earlier run stopped."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig
from torch.utils.data import IterableDataset, Sampler

from ..data.shared_dataset import SharedDataset
from .data_check import check_images
from .datasets import instantiate_dataset

logger = logging.getLogger(__name__)


class ResumableTrainingSampler(TrainingSampler):
    """Detectron2's infinite shuffled stream in batches, starting at any batch.

    Batches can be limited to images of one group (landscape or portrait), as with Detectron2's
    ``aspect_ratio_grouping``, but here before anything is loaded, so that batches can be skipped
    without loading them.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        skip_batches: int = 0,
        groups: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> None:
        """
        Args:
            size: Number of images in the data set.
            batch_size: Images per batch in this process.
            skip_batches: Number of batches to skip at the beginning of the stream.
            groups: Group of each image; each batch has images of one group. Default: any images.
            seed: Seed of the shuffle, the same on all processes. Default: a random one.
        """
        super().__init__(size, seed=seed)
        self._batch_size = batch_size
        self._skip_batches = skip_batches
        self._groups = groups

    def __iter__(self) -> Iterator[int]:
        for batch in itertools.islice(self._batches(), self._skip_batches, None):
            yield from batch

    def _batches(self) -> Iterator[list[int]]:
        unfinished = defaultdict(list)  # images of each group waiting for a full batch
        for index in super().__iter__():
            group = self._groups[index] if self._groups is not None else 0
            unfinished[group].append(index)
            if len(unfinished[group]) == self._batch_size:
                yield unfinished.pop(group)


def build_train_loader(
    dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    total_batch_size: int | None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    sampler: Sampler | None = None,
    order_seed: int | None = None,
    start_iter: int = 0,
    **kwargs,
):
    """Builds a loader like ``build_detection_train_loader`` that can start at any batch.

    The order of images is Detectron2's. The trainer sets ``order_seed`` and ``start_iter``.

    Args:
        dataset: List of dicts in Detectron2's format, or a data set.
        mapper: Makes the model's input from such a dict.
        total_batch_size: Images per batch over all processes; None with ``single_gpu_batch_size``.
        aspect_ratio_grouping: Whether a batch has only landscape or only portrait images.
        num_workers: Processes that load images; with 0, this process does.
        sampler: Order of the images. It cannot be fast-forwarded: ``start_iter`` has no effect.
        order_seed: Seed of the order of images. Without it, resuming starts a new order.
        start_iter: Number of iterations already trained.
        **kwargs: As for Detectron2's function.

    Returns:
        An iterable over the batches of this process.

    Raises:
        DataError: Images are missing, or an annotation has no box.
    """
    kwargs.update(
        dataset=dataset,
        mapper=mapper,
        total_batch_size=total_batch_size,
        num_workers=num_workers,
    )
    if isinstance(dataset, list) and isinstance(mapper, DatasetMapper):
        check_images(dataset, "training")  # other mappers may read anything
    if sampler is not None or isinstance(dataset, IterableDataset):
        reason = "its data set is a stream" if sampler is None else "it has a sampler of its own"
        _warn_of_new_order(start_iter, reason)
        return build_detection_train_loader(
            sampler=sampler, aspect_ratio_grouping=aspect_ratio_grouping, **kwargs
        )
    if start_iter and order_seed is None:
        logger.warning("train.seed is negative: the order of images does not continue")
    # As in build_detection_train_loader, which reports wrong sizes.
    batch_size = kwargs.get("single_gpu_batch_size") or (total_batch_size // comm.get_world_size())
    sampler = ResumableTrainingSampler(
        len(dataset),
        batch_size=max(batch_size, 1),
        skip_batches=start_iter,
        groups=_aspect_ratio_groups(dataset) if aspect_ratio_grouping else None,
        seed=order_seed,
    )
    # Workers take turns with whole batches, so the order does not depend on their number.
    return build_detection_train_loader(sampler=sampler, aspect_ratio_grouping=False, **kwargs)


def instantiate_train_loader(cfg: DictConfig, *, seed: int | None = None, start_iter: int = 0):
    """Instantiates ``dataloader.train``, starting with the batch of ``start_iter``.

    Args:
        cfg: A node for :func:`build_train_loader`. A node for Detectron2's
            ``build_detection_train_loader``, as in users' configs and saved configs, is built by
            :func:`build_train_loader` with the same arguments; any other loader is built unchanged.
        seed: Seed of the order of images, unless the node has one.
        start_iter: Number of iterations already trained.

    Returns:
        An iterable over the batches of this process.
    """
    target = locate(cfg._target_) if isinstance(cfg._target_, str) else cfg._target_
    if target not in (build_train_loader, build_detection_train_loader):
        _warn_of_new_order(start_iter, "it is a loader of its own")
        return instantiate(cfg)
    arguments = {x: instantiate(cfg[x]) for x in cfg if x not in ("_target_", "dataset")}
    arguments["dataset"] = instantiate_dataset(cfg.dataset, arguments.get("mapper"), "training")
    return build_train_loader(**{"order_seed": seed, **arguments, "start_iter": start_iter})


def _aspect_ratio_groups(dataset) -> Sequence[int] | None:
    """Returns 1 for landscape, 0 for portrait images; None if the data set lacks the sizes."""
    if isinstance(dataset, SharedDataset) and (dataset.aspect_ratio_groups() >= 0).all():
        return dataset.aspect_ratio_groups()  # without a copy for every process
    groups = []
    for index in range(len(dataset)):
        image = dataset[index]
        if "width" not in image or "height" not in image:
            logger.warning(
                "Batches mix landscape and portrait images: the data set does not give the "
                f"'width' and 'height' of image {index}"
            )
            return None
        groups.append(int(image["width"] > image["height"]))
    return groups


def _warn_of_new_order(start_iter: int, reason: str) -> None:
    if start_iter:
        logger.warning(
            "The order of images starts anew: dataloader.train cannot be fast-forwarded, "
            f"because {reason}"
        )
