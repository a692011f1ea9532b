"""A hook that keeps an exponential moving average of the weights."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class EMAHook(HookBase):
    """Averages the weights after every step; the average is evaluated and saved.

    Give the checkpointer :attr:`model` as its model and the trained model as a checkpointable. Then
    the ``model`` of every checkpoint is the one evaluated at its iteration, and training resumes
    exactly. The hook must be before the checkpointer in the list of hooks.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        """
        Args:
            model: The trained model (not wrapped for several processes).
            decay: Weight of the past average in each step. It is at most (1 + n) / (10 + n) in step
                n, so that the random start is soon forgotten.

        Raises:
            ValueError: ``decay`` is outside [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self._trained = model
        self._decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self._averaged.eval()

    @property
    def model(self) -> nn.Module:
        """The averaged model, in evaluation mode."""
        return self._averaged.module

    def _average(self, averages: list[Tensor], values: list[Tensor], _: Tensor | int) -> None:
        steps = int(self._averaged.n_averaged)  # on the CPU: no synchronization
        decay = min(self._decay, (1 + steps) / (10 + steps))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:  # for example counters of batches
            torch._foreach_copy_(averages, values)

    def before_train(self) -> None:
        if self._averaged.n_averaged == 0:  # the initial weights were loaded into the average
            self._trained.load_state_dict(self.model.state_dict())

    def after_step(self) -> None:
        if getattr(self.trainer, "is_skipped", False):  # no weight has changed
            return
        self._averaged.update_parameters(self._trained)

    def state_dict(self) -> dict[str, int]:
        return {"n_averaged": int(self._averaged.n_averaged)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restores the step count when training resumes from a checkpoint written with EMA."""
        self._averaged.n_averaged.fill_(state_dict["n_averaged"])
