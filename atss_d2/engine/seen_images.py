"""Continues the order of images after a change of the batch size."""

from __future__ import annotations

import logging

from detectron2.engine import HookBase

logger = logging.getLogger(__name__)


class SeenImages(HookBase):
    """Counts the images that were trained on, and starts the loader behind them.

    Iterations stand for as many images only while the batch size stays the same. Must be before the
    checkpointer in the list of hooks.
    """

    def __init__(self) -> None:
        self._count: int | None = None  # unknown
        self._batch_size: int | None = None

    def state_dict(self) -> dict[str, int]:
        if self._count is None:
            return {}
        return {"count": self._count, "batch_size": self._batch_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._count, self._batch_size = state_dict["count"], state_dict["batch_size"]

    def before_train(self) -> None:
        loader, start = self.trainer.data_loader, self.trainer.start_iter
        # Other loaders than ours do not say how many images all processes take.
        size = getattr(loader, "total_batch_size", None)
        if size is None:
            self._count = None
            return
        if self._count is None:
            self._count, self._batch_size = start * size, size
        loader.batches.start, num_again = divmod(self._count, size)
        if size != self._batch_size:
            again = f"; {num_again} of them are used again" if num_again else ""
            logger.warning(
                f"The batch size was {self._batch_size} and is {size}: the order of images goes on "
                f"behind the {self._count} images that were seen{again}. Learning rate and "
                "schedule do not change by themselves"
            )
        self._count, self._batch_size = self._count - num_again, size

    def after_step(self) -> None:
        if self._count is not None:
            self._count += self._batch_size
