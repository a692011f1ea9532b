"""A training loader whose order of images can be taken up where an earlier run stopped."""

from __future__ import annotations

import inspect
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

from detectron2.config import instantiate
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from omegaconf import DictConfig
from torch.utils.data import IterableDataset

from .data_check import check_images

logger = logging.getLogger(__name__)


class ResumableTrainingSampler(TrainingSampler):
    """Detectron2's infinite shuffled stream, batch by batch, from any batch on.

    Images of one batch can be made to share a group (landscape or portrait) as Detectron2's
    ``aspect_ratio_grouping`` does, but here before anything is loaded, so that batches can be
    skipped without loading them.
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
            size: Number of images of the data set.
            batch_size: Images in a batch of this process.
            skip_batches: Batches at the beginning of the stream to leave out.
            groups: Group of each image; a batch holds images of one group. Default: any images.
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
        unfinished = defaultdict(list)  # images of each group that wait for a full batch
        for index in super().__iter__():
            group = self._groups[index] if self._groups is not None else 0
            unfinished[group].append(index)
            if len(unfinished[group]) == self._batch_size:
                yield unfinished.pop(group)


def build_train_loader(cfg: DictConfig, *, seed: int | None = None, start_iter: int = 0):
    """Instantiates ``dataloader.train``, beginning with the batch of ``start_iter``.

    Args:
        cfg: A node for Detectron2's ``build_detection_train_loader`` (or any other loader, which
            is then instantiated as it is).
        seed: Seed of the order of images. Without it, resuming starts a new order.
        start_iter: Iterations that were already trained.

    Returns:
        An iterable of batches of this process.
    """
    if cfg._target_ not in (build_detection_train_loader, _name(build_detection_train_loader)):
        _warn_of_new_order(start_iter, "it is a loader of its own")
        return instantiate(cfg)
    if cfg.get("sampler", None) is not None:
        _warn_of_new_order(start_iter, "it has a sampler of its own")
        return instantiate(cfg)
    kwargs = {name: cfg[name] for name in cfg if name not in ("_target_", "dataset")}
    dataset = instantiate(cfg.dataset)
    kwargs = {name: instantiate(value) for name, value in kwargs.items()}
    if isinstance(dataset, list) and isinstance(kwargs.get("mapper"), DatasetMapper):
        check_images(dataset, "training")  # other mappers may read anything
    if isinstance(dataset, IterableDataset):
        _warn_of_new_order(start_iter, "its data set is a stream")
        return build_detection_train_loader(dataset=dataset, **kwargs)
    grouped = kwargs.pop("aspect_ratio_grouping", _default_grouping())
    if start_iter and seed is None:
        logger.warning("train.seed is negative: the order of images does not continue")
    # As build_detection_train_loader, which reports sizes that are wrong.
    batch_size = kwargs.get("single_gpu_batch_size") or (
        kwargs["total_batch_size"] // comm.get_world_size()
    )
    sampler = ResumableTrainingSampler(
        len(dataset),
        batch_size=max(batch_size, 1),
        skip_batches=start_iter,
        groups=_aspect_ratio_groups(dataset) if grouped else None,
        seed=seed,
    )
    # Workers take whole batches in turn, so the order does not depend on their number.
    return build_detection_train_loader(
        dataset=dataset, sampler=sampler, aspect_ratio_grouping=False, **kwargs
    )


def _aspect_ratio_groups(dataset) -> list[int] | None:
    """1 for landscape, 0 for portrait images; None when the sizes are not in the data set."""
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


def _default_grouping() -> bool:
    function = inspect.unwrap(build_detection_train_loader)
    return inspect.signature(function).parameters["aspect_ratio_grouping"].default


def _name(function) -> str:
    return f"{function.__module__}.{function.__qualname__}"
