"""Trains in float16, also when resuming from a checkpoint of a float32 run."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.engine import AMPTrainer as Detectron2AMPTrainer

__all__ = ["AMPTrainer", "with_grad_scaler"]

logger = logging.getLogger(__name__)


class AMPTrainer(Detectron2AMPTrainer):
    """Detectron2's ``AMPTrainer`` that can also resume from a run without loss scaling.

    The other direction needs no code: ``SimpleTrainer`` ignores the state of a scaler.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(with_grad_scaler(state_dict, self))


def with_grad_scaler(state_dict: dict[str, Any], trainer: Detectron2AMPTrainer) -> dict[str, Any]:
    """Returns a trainer's state with that of a gradient scaler, a fresh one if it has none.

    Args:
        state_dict: State of a trainer in float16, float32 or bfloat16; it is not changed.
        trainer: The trainer that resumes from it.

    Returns:
        The state for ``trainer.load_state_dict``.
    """
    if state_dict.get("grad_scaler"):  # the state of a disabled scaler is empty
        return state_dict
    logger.warning(
        "the checkpoint is of a training without loss scaling: the gradient scaler starts with "
        f"its initial scale, {trainer.grad_scaler.get_scale():g}"
    )
    return {**state_dict, "grad_scaler": trainer.grad_scaler.state_dict()}
