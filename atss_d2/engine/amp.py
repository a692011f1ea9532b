"""The gradient scaler of float16, also when resuming from a run in another precision."""

from __future__ import annotations

import logging
from typing import Any

import torch

__all__ = ["GradScaler", "grad_scaler_state"]

logger = logging.getLogger(__name__)


class GradScaler(torch.amp.GradScaler):
    """torch's scaler, whose ``unscale_`` may be called by the trainer and by hooks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_unscaled = False

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Unscales the gradient, once between two updates."""
        if not self._is_unscaled:
            super().unscale_(optimizer)
            self._is_unscaled = True

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        self._is_unscaled = False


def grad_scaler_state(trainer_state: dict[str, Any], scaler: torch.amp.GradScaler) -> dict:
    """Returns the state of a gradient scaler in that of a trainer, a fresh one if it has none.

    Args:
        trainer_state: State of a trainer in float16, float32 or bfloat16.
        scaler: The scaler that loads it.
    """
    state = trainer_state.get("grad_scaler")
    if state:  # the state of a disabled scaler is empty
        return state
    logger.warning(
        "the checkpoint is of a training without loss scaling: the gradient scaler starts with "
        f"its initial scale, {scaler.get_scale():g}"
    )
    return scaler.state_dict()
