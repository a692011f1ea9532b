"""Saves checkpoints during training and removes the oldest ones, also after a run was resumed."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from detectron2.engine import hooks

from ..checkpoint import CheckpointError
from ..checkpoint.run_folder import FINAL, is_remote, numbered_checkpoints, training_problem

__all__ = ["PeriodicCheckpointer"]

logger = logging.getLogger(__name__)


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook, whose ``max_to_keep`` counts the files of the whole run.

    Detectron2's remembers only the files that it has written since the start of the process.
    """

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Saves after an iteration if it is due; then removes what ``max_to_keep`` does not keep.

        Raises:
            CheckpointError: The weights after the last iteration are not finite.
        """
        if is_remote(self.checkpointer.save_dir):
            super().step(iteration, **kwargs)
            return
        state = {"iteration": int(iteration), **kwargs}
        if (iteration + 1) % self.period == 0:
            is_saved = self.checkpointer.save(f"{self.file_prefix}_{iteration:07d}", **state)
            if is_saved and self.max_to_keep is not None:
                _remove_old(self.checkpointer.save_dir, iteration, self.max_to_keep)
        is_last = self.max_iter is not None and iteration >= self.max_iter - 1
        if is_last and not self.checkpointer.save(f"{self.file_prefix}_final", **state):
            raise CheckpointError(
                f"the weights after the last iteration hold NaN or infinity: {FINAL} is not "
                f"written; the checkpoints in '{self.checkpointer.save_dir}' are from before. "
                "Lower the learning rate, or set train.clip_gradients.enabled=True, and continue "
                "by --resume"
            )


def _remove_old(folder: str, iteration: int, max_to_keep: int) -> None:
    """Removes all but the newest files up to an iteration, if they are of a training."""
    files = [x for x in numbered_checkpoints(folder) if x.iteration <= iteration]
    for checkpoint in files[max_to_keep:]:
        try:
            # Without reading the tensors.
            content = torch.load(checkpoint.path, "cpu", weights_only=True, mmap=True)
            problem = training_problem(content, check_numbers=False)
        except Exception as error:  # of any kind: the file may be anything
            problem = f"cannot be read ({error})"
        if problem:
            continue  # not ours
        os.unlink(checkpoint.path)
        logger.info(f"Removed {checkpoint.path}: max_to_keep is {max_to_keep}")
