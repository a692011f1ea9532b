"""Ends a training after a signal where its state is whole, on all processes at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint import SafeCheckpointer
from ..checkpoint.run_folder import numbered_name
from ..plain.stopping import STOP, Stopped, blocked_signals, name_of
from .processes import control_group
from .sharded_optimizer import gather_state

logger = logging.getLogger(__name__)

_END = object()


class StopHook(HookBase):
    """Saves a checkpoint and ends the training when a signal has asked one of the processes to.

    Put it behind the hooks that change weights or save them, and before the evaluation. What the
    processes know is exchanged while a step runs, over gloo, so that no step and no GPU waits for
    it. All stop after the first step that began after each of them could know.
    """

    def __init__(self, checkpointer: SafeCheckpointer) -> None:
        """
        Args:
            checkpointer: Saves on the first process.
        """
        self._checkpointer = checkpointer
        self._finished: int | None = None
        self._request: torch.Tensor | None = None
        self._exchange: dist.Work | None = None

    def before_train(self) -> None:
        STOP.is_deferred = True

    def before_step(self) -> None:
        group = control_group()
        if group is not None:
            self._request = torch.tensor([STOP.signum or 0])
            self._exchange = dist.all_reduce(
                self._request, dist.ReduceOp.MAX, group=group, async_op=True
            )

    def after_step(self) -> None:
        self._finished = self.trainer.iter
        STOP.saved_iteration = self._checkpointer.saved_iteration
        signum = STOP.signum or 0
        if self._exchange is not None:
            self._exchange.wait()
            signum = int(self._request)
        if signum:
            STOP.signum, STOP.is_stopping = signum, True
            gather_state(self.trainer.optimizer)
            self._save()
            if self._exchange is not None:
                dist.barrier(group=control_group())  # until the file is complete
            raise Stopped(signum, is_agreed=True)

    def after_train(self) -> None:
        # An evaluation was abandoned. Each process ends by itself then, and this one saves.
        if STOP.signum is not None and not STOP.is_stopping:
            if self._finished == self.trainer.iter < self.trainer.max_iter:
                STOP.is_stopping = True
                self._save()
        elif STOP.signum is None:
            STOP.is_deferred = False

    def _save(self) -> None:
        if not comm.is_main_process():
            return
        iteration = self._finished
        if self._checkpointer.saved_iteration != iteration:
            self._checkpointer.save(Path(numbered_name(iteration)).stem, iteration=iteration)
        stopped = f"Stopped by {name_of(STOP.signum)} after iteration {iteration}"
        if self._checkpointer.saved_iteration == iteration:
            path = self._checkpointer.get_checkpoint_file()
            logger.info(f"{stopped}, which is saved in {path}: --resume continues from it")
        else:
            logger.warning(f"{stopped}, which is not saved")
        STOP.saved_iteration = self._checkpointer.saved_iteration
        STOP.is_told = True


class ShieldedLoader:
    """A data loader whose worker processes do not get the signals that stop a training.

    Ctrl-C and many schedulers signal all processes, and the training needs its workers to finish
    the step.
    """

    def __init__(self, loader: Iterable[Any], *, ends_together: bool = False) -> None:
        """
        Args:
            loader: The data loader.
            ends_together: Whether processes wait for each other at its end, as in evaluations. They
                stop if a signal comes, other than in the operations that follow.
        """
        self._loader = loader
        self._ends_together = ends_together

    def __iter__(self) -> Iterator[Any]:
        with blocked_signals():
            iterator = iter(self._loader)
            batch = next(iterator, _END)  # some loaders start their workers only now
        while batch is not _END:
            yield batch
            del batch
            batch = next(iterator, _END)
        if self._ends_together:
            _wait_for_others()

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # while it is copied
            raise AttributeError(name)
        return getattr(self._loader, name)


def _wait_for_others() -> None:
    """Waits for all processes in a way that a signal can end."""
    group = control_group()
    if group is None:
        return
    work = dist.all_reduce(torch.zeros(1), group=group, async_op=True)
    while not work.is_completed():
        time.sleep(0.01)
    work.wait()
