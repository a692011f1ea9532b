"""Splits a batch into micro-batches that together give its gradient."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ..config import ConfigError
from ..modeling.accumulation import batch_totals, knows_totals, predicts_quality

logger = logging.getLogger(__name__)


class MicroBatches:
    """Splits batches, and makes the losses of the parts add up to that of the batch.

    Where the labels follow from the boxes alone, the losses of all parts are normalized by the
    positives of the whole batch, counted in advance. Elsewhere each part has its own normalizers,
    and the loss is the mean over the parts.
    """

    def __init__(self, model: nn.Module, num: int) -> None:
        """
        Args:
            model: The trained model, not wrapped for several processes.
            num: Parts of a batch.

        Raises:
            ConfigError: ``num`` is below 1.
        """
        if num < 1:
            raise ConfigError(f"train.accumulate must be >= 1, got {num}")
        self._model = model
        self._num = num
        self._uses_totals = num > 1 and knows_totals(model)
        self._counted: tuple[list[Tensor], list[tuple[Tensor, ...]]] | None = None
        self._is_verified = False
        self._with_quality = self._uses_totals and predicts_quality(model)
        if num > 1 and not self._uses_totals:
            logger.info(_WHY_MEAN)

    def split(self, images: Sequence[Any]) -> list[Sequence[Any]]:
        """Splits the images that this process gets of a batch.

        Raises:
            ConfigError: They cannot be split evenly.
        """
        if self._num == 1:
            return [images]
        if not images or len(images) % self._num:
            raise ConfigError(
                f"train.accumulate is {self._num}, which does not divide the {len(images)} images "
                "of a batch in each process: set dataloader.train.total_batch_size to a multiple "
                "of train.accumulate x processes"
            )
        size = len(images) // self._num
        return [images[i : i + size] for i in range(0, len(images), size)]

    @contextlib.contextmanager
    def normalized(self, parts: Sequence[Sequence[Any]]) -> Iterator[float]:
        """Normalizes the losses of the parts of a batch.

        Yields:
            The weight of the parts, whose weighted losses add up to that of the batch.
        """
        if not self._uses_totals:
            yield 1 / self._num
            return
        totals = batch_totals(self._model, parts, with_quality=self._with_quality)
        with self._model.criterion.normalized_by(totals) as seen:
            yield 1.0
        self._counted = totals, seen

    def are_disproved(self) -> bool:
        """Compares what was counted in advance with what the losses counted.

        Only after the first batch with positives, as the host reads the numbers. All processes
        decide alike.

        Returns:
            Whether the batch must be repeated: from now on, each part has its own normalizers.
        """
        if not self._uses_totals or self._is_verified:
            return False
        totals, seen = self._counted
        counted = [torch.stack(parts).sum() for parts in zip(*seen)]
        is_equal = len(seen) == self._num and len(counted) == len(totals)
        is_equal = is_equal and torch.allclose(
            torch.stack(totals).float(), torch.stack(counted).float(), rtol=1e-4, equal_nan=True
        )
        # Without positives, 0 equals 0: even where each image counts as one, no weights add up.
        has_positives = all(bool(total) for total in totals)
        are_equal, had_positives = zip(*comm.all_gather((is_equal, has_positives)))
        self._uses_totals = all(are_equal)
        self._is_verified = any(had_positives)
        if not self._uses_totals:
            logger.warning(_WHY_MEAN)
        return not self._uses_totals


_WHY_MEAN = (
    "train.accumulate: losses are normalized within each micro-batch, because their normalizers "
    "cannot be counted before the forward pass of this model, rule or criterion"
)
