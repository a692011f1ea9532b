"""A training loader whose order and augmentations continue where an earlier run stopped."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetFromList, DatasetMapper, build_detection_train_loader
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from omegaconf import DictConfig
from torch.utils.data import DataLoader, IterableDataset, Sampler

from ..config import ConfigError, located
from ..data import DataError
from ..data.order import GlobalBatches, SamplerBatches, epochs_of
from ..data.samples import Problem, Sample, SeededSamples
from ..data.seeding import seeded
from ..data.shared_dataset import SharedDataset
from ..data.workers import with_default_workers
from .bad_images import BadImages
from .data_check import check_images, infinite_boxes
from .datasets import instantiate_dataset, loader_arguments
from .rng import preserved_rng

logger = logging.getLogger(__name__)

SAMPLERS = 4  # what numbers are hashed for; see also data/samples.py and rng.py


class TrainLoader:
    """Batches of this process, from any batch on; the same with any number of workers.

    Attributes:
        samples: The data set, mapped.
        batches: The keys of the batches.
        total_batch_size: Images per batch over all processes.
        has_own_order: Whether the order keeps its seed in :meth:`continue_at`.
    """

    def __init__(
        self,
        samples: SeededSamples,
        batches: GlobalBatches | SamplerBatches,
        *,
        total_batch_size: int,
        has_own_order: bool,
        collate_fn: Callable[[list], Any] | None = None,
        bad_images: BadImages | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            samples: The data set, mapped.
            batches: The keys of the batches.
            total_batch_size: Images per batch over all processes.
            has_own_order: As the attribute.
            collate_fn: Makes a batch of a list of what the mapper returned. Default: the list.
            bad_images: Counts skipped images. Default: the first one is an error.
            **kwargs: Arguments of torch's ``DataLoader``.
        """
        self.samples = samples
        self.batches = batches
        self.total_batch_size = total_batch_size
        self.has_own_order = has_own_order
        self._bad_images = bad_images or BadImages()
        loader = DataLoader(
            samples,
            batch_sampler=batches,
            collate_fn=_Collate(collate_fn or trivial_batch_collator),
            worker_init_fn=worker_init_reset_seed,
            generator=torch.Generator(),  # else it would draw a number from the model's generator
            **kwargs,
        )
        self._loader = with_default_workers(loader)

    def continue_at(self, start_iter: int, *, seed: int) -> None:
        """Moves to the batch of an iteration; to be called before iterating.

        Args:
            start_iter: Number of iterations already trained.
            seed: Seed of the run.
        """
        self.batches.start = start_iter
        self.samples.seed = seed
        if not self.has_own_order:
            self.batches.seed = seed

    def __iter__(self) -> Iterator[Any]:
        """Yields batches.

        Raises:
            DataError: An image cannot be used; the message names its file, its id and the cause.
        """
        for batch, problems in self._loader:
            self._bad_images.add(problems)
            if batch is None:
                raise DataError(
                    f"no image can be used instead of another: {len(problems)} raised errors, for "
                    "the others the mapper returned None"
                )
            yield batch


class _Collate:
    """Collates the items of samples and collects their problems, in the worker."""

    def __init__(self, collate_fn: Callable[[list], Any]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, samples: list[Sample]) -> tuple[Any, list[Problem]]:
        problems = [problem for sample in samples for problem in sample.problems]
        items = [sample.item for sample in samples]
        is_whole = all(item is not None for item in items)
        return self._collate_fn(items) if is_whole else None, problems


def build_train_loader(
    dataset,
    *,
    mapper: Callable[[dict], Any] | None,
    total_batch_size: int | None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    sampler: Sampler | None = None,
    order_seed: int | None = None,
    seed: int | None = None,
    start_iter: int = 0,
    bad_images: BadImages | None = None,
    **kwargs,
):
    """Builds a loader like ``build_detection_train_loader`` that can start at any batch.

    The order of images is Detectron2's in one process; several processes share its batches. What
    the mapper draws for an image depends only on the seed, the epoch and the image. The trainer
    sets ``seed``, ``start_iter`` and ``bad_images``.

    Args:
        dataset: List of dicts in Detectron2's format, or a data set.
        mapper: Makes the model's input from such a dict.
        total_batch_size: Images per batch over all processes; None with ``single_gpu_batch_size``.
        aspect_ratio_grouping: Whether a batch has only landscape or only portrait images.
        num_workers: Processes that load images; with 0, this process does.
        sampler: Order of the images. Detectron2's own samplers are used as the default one; others
            yield the indices of this process, and are iterated up to ``start_iter``.
        order_seed: Seed of the order of images. Default: ``seed``.
        seed: Seed of the augmentations. Default: ``order_seed``, or a random one.
        start_iter: Number of iterations already trained.
        bad_images: Counts skipped images. Default: the first one is an error.
        **kwargs: As for Detectron2's function.

    Returns:
        An iterable over the batches of this process.

    Raises:
        DataError: Images are missing, or an annotation has no box.
        ConfigError: The batch size does not fit the number of processes.
    """
    if seed is None:
        seed = comm.shared_random_seed() if order_seed is None else order_seed
    skips_bad = bad_images is not None and bad_images.skips
    # Other mappers may read anything.
    if isinstance(dataset, list) and isinstance(mapper, DatasetMapper):
        if not skips_bad:
            check_images(dataset, "training")
        for text in infinite_boxes(dataset, "training"):
            logger.warning(text)
    if isinstance(dataset, IterableDataset):
        _warn_of_new_order(start_iter, "its data set is a stream")
        return build_detection_train_loader(
            dataset,
            mapper=mapper,
            sampler=sampler,
            total_batch_size=total_batch_size,
            aspect_ratio_grouping=aspect_ratio_grouping,
            num_workers=num_workers,
            # Other augmentations than those of the first iterations.
            seed=seed + start_iter,
            **kwargs,
        )
    batch_size = checked_batch_size(total_batch_size, kwargs.pop("single_gpu_batch_size", None))
    groups = _aspect_ratio_groups(dataset) if aspect_ratio_grouping else None
    num_images = len(dataset)
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)  # serialized: workers share its memory
    batches = _batches(
        TrainingSampler(num_images, seed=seed if order_seed is None else order_seed)
        if sampler is None
        else sampler,
        num_images=num_images,
        batch_size=batch_size,
        groups=groups,
        start=start_iter,
    )
    kwargs.pop("drop_last", None)  # the stream of batches does not end
    return TrainLoader(
        SeededSamples(
            dataset,
            mapper,
            seed=seed,
            skips_bad=skips_bad,
            groups=groups,
        ),
        batches,
        total_batch_size=batch_size,
        has_own_order=sampler is not None or order_seed is not None,
        bad_images=bad_images,
        num_workers=num_workers,
        **kwargs,
    )


def check_train_loader(cfg: DictConfig) -> None:
    """Finds wrong arguments of ``dataloader.train`` other than its data set.

    Raises:
        ConfigError: The batch size does not fit the number of processes, or the mapper cannot be
            built.
    """
    if located(cfg._target_) not in _LOADERS:
        return
    checked_batch_size(cfg.get("total_batch_size"), cfg.get("single_gpu_batch_size"))
    try:
        with preserved_rng():
            instantiate(cfg.get("mapper"))
    except Exception as error:  # of any kind
        raise ConfigError(
            f"dataloader.train.mapper cannot be built: {type(error).__name__}: {error}"
        ) from error


def instantiate_train_loader(
    cfg: DictConfig,
    *,
    seed: int | None = None,
    start_iter: int = 0,
    bad_images: BadImages | None = None,
):
    """Instantiates ``dataloader.train``, starting with the batch of ``start_iter``.

    Args:
        cfg: A node for :func:`build_train_loader`. A node for Detectron2's
            ``build_detection_train_loader``, as in users' configs and saved configs, is built by
            :func:`build_train_loader` with the same arguments; any other loader is built unchanged.
        seed: Seed of order and augmentations, unless the node has one.
        start_iter: Number of iterations already trained.
        bad_images: Counts skipped images.

    Returns:
        An iterable over the batches of this process.
    """
    if located(cfg._target_) not in _LOADERS:
        _warn_of_new_order(start_iter, "it is a loader of its own")
        return instantiate(cfg)
    # A sampler without a seed of its own then draws the same one in a resumed run.
    with contextlib.nullcontext() if seed is None else seeded(seed, SAMPLERS):
        arguments = loader_arguments(cfg)
        arguments["dataset"] = instantiate_dataset(
            cfg.dataset,
            arguments.get("mapper"),
            "training",
            is_checked=bad_images is None or not bad_images.skips,
        )
    own = {"start_iter": start_iter, "bad_images": bad_images}
    return build_train_loader(**{"seed": seed, **arguments, **own})


_LOADERS = (build_train_loader, build_detection_train_loader)


def checked_batch_size(total: int | None, of_a_process: int | None = None) -> int:
    """Returns the images per batch over all processes.

    Raises:
        ConfigError: It does not fit the number of processes.
    """
    world_size = comm.get_world_size()
    if of_a_process and total:
        raise ConfigError(
            f"dataloader.train has total_batch_size={total} and single_gpu_batch_size="
            f"{of_a_process}: give only one"
        )
    if of_a_process:
        return of_a_process * world_size
    if not total or total < 0 or total % world_size:
        raise ConfigError(
            f"the total batch size {total} (dataloader.train.total_batch_size, "
            f"SOLVER.IMS_PER_BATCH) must be divisible by the number of processes, {world_size}"
        )
    return total


def _batches(
    sampler: Sampler,
    *,
    num_images: int,
    batch_size: int,
    groups: np.ndarray | None,
    start: int,
) -> GlobalBatches | SamplerBatches:
    part = dict(groups=groups, start=start, rank=comm.get_rank(), world_size=comm.get_world_size())
    known = epochs_of(sampler)
    if known is not None and known[0].size == num_images:
        epochs, seed = known
        return GlobalBatches(epochs, batch_size=batch_size, seed=seed, **part)
    if start:
        logger.warning(
            f"The order of images continues only if the {type(sampler).__name__} of "
            "dataloader.train yields the same images in every run"
        )
    batch_size //= comm.get_world_size()
    return SamplerBatches(sampler, size=num_images, batch_size=batch_size, **part)


def _aspect_ratio_groups(dataset) -> np.ndarray | None:
    """Returns 1 for landscape, 0 for portrait images; None if the data set lacks the sizes."""
    if isinstance(dataset, SharedDataset) and (dataset.aspect_ratio_groups() >= 0).all():
        return dataset.aspect_ratio_groups()
    groups = np.zeros(len(dataset), np.int8)  # workers get a copy
    for index in range(len(groups)):
        image = dataset[index]
        if "width" not in image or "height" not in image:
            logger.warning(
                "Batches mix landscape and portrait images: the data set does not give the "
                f"'width' and 'height' of image {index}"
            )
            return None
        groups[index] = image["width"] > image["height"]
    return groups


def _warn_of_new_order(start_iter: int, reason: str) -> None:
    if start_iter:
        logger.warning(
            "The order of images starts anew: dataloader.train cannot be fast-forwarded, "
            f"because {reason}"
        )
