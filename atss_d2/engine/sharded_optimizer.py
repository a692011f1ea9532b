"""ZeRO-1: the state of the optimizer is spread over the processes."""

from __future__ import annotations

import logging
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig
from torch.distributed.optim import ZeroRedundancyOptimizer

logger = logging.getLogger(__name__)


class ShardedOptimizer(ZeroRedundancyOptimizer):
    """torch's optimizer, whose gathered state is never that of an earlier step.

    Attributes:
        is_gathered: Whether the first process has the state of all.
    """

    is_gathered = False

    def step(self, *args: Any, **kwargs: Any) -> Any:
        self.is_gathered, self._all_state_dicts = False, []
        return super().step(*args, **kwargs)


def shard(cfg: DictConfig, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Spreads the state of an optimizer over all processes if ``train.shard_optimizer`` is true.

    Checkpoints stay the same: they can be resumed with any number of processes, also unsharded.

    Args:
        cfg: A config with Detectron2's five keys.
        optimizer: An optimizer that has not stepped; of any class of torch.
    """
    if not cfg.train.get("shard_optimizer", False):
        return optimizer
    if comm.get_world_size() == 1:
        logger.info("train.shard_optimizer: a single process keeps the whole state")
        return optimizer
    return ShardedOptimizer(
        optimizer.param_groups, optimizer_class=type(optimizer), **optimizer.defaults
    )


def gather_state(optimizer: torch.optim.Optimizer) -> None:
    """Sends the state of a sharded optimizer to the first process, which may then save it.

    All processes must call this; it does nothing for other optimizers.
    """
    if isinstance(optimizer, ShardedOptimizer) and not optimizer.is_gathered:
        optimizer.consolidate_state_dict(to=0)
        optimizer.is_gathered = True


class GatherState(HookBase):
    """Calls :func:`gather_state` when a checkpoint is due. Must be before the checkpointer.

    Also before evaluations: when a signal ends one, each process saves and ends by itself.
    """

    def __init__(self, *periods: int) -> None:
        """
        Args:
            *periods: Iterations between checkpoints, and between evaluations; 0 for none.
        """
        self._periods = [period for period in periods if period > 0]

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        is_due = any(iteration % period == 0 for period in self._periods)
        if is_due or iteration >= self.trainer.max_iter:
            gather_state(self.trainer.optimizer)
