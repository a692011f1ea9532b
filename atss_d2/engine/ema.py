"""Exponential moving average of the weights, as a hook."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class EMAHook(HookBase):
    """Averages the weights after every step; the average is what is evaluated and kept.

    Intermediate checkpoints hold the trained weights under ``model`` and the average under
    ``ema``, so that training resumes exactly. After the last step the average replaces the
    trained weights: ``model_final.pth`` is the model that was evaluated. Must stand before the
    checkpointer in the list of hooks, and its :attr:`averaged` be one of the checkpointables.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        """
        Args:
            model: The trained model (not wrapped for several processes).
            decay: Weight of the past in each step; smaller in the first steps
                (1 + n) / (10 + n), so that the random start is soon forgotten.

        Raises:
            ValueError: ``decay`` lies outside [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self._model = model
        self._decay = decay
        self.averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self.averaged.eval()

    @property
    def model(self) -> nn.Module:
        """The averaged model, in evaluation mode."""
        return self.averaged.module

    def _average(self, averages: list[Tensor], values: list[Tensor], _: Tensor | int) -> None:
        steps = int(self.averaged.n_averaged)  # lives on the CPU: no synchronisation
        decay = min(self._decay, (1 + steps) / (10 + steps))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:  # counters of batches and the like
            torch._foreach_copy_(averages, values)

    def after_step(self) -> None:
        self.averaged.update_parameters(self._model)
        if self.trainer.iter == self.trainer.max_iter - 1:
            self._model.load_state_dict(self.model.state_dict())
