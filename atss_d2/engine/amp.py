"""Training in float16 that can go on from a checkpoint of a training in float32."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.engine import AMPTrainer as Detectron2AMPTrainer

__all__ = ["AMPTrainer", "with_grad_scaler"]

logger = logging.getLogger(__name__)


class AMPTrainer(Detectron2AMPTrainer):
    """Detectron2's ``AMPTrainer``, which also resumes from a trainer that scaled no loss.

    The way back needs nothing: ``SimpleTrainer`` does not look at the state of a scaler.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(with_grad_scaler(state_dict, self))


def with_grad_scaler(state_dict: dict[str, Any], trainer: Detectron2AMPTrainer) -> dict[str, Any]:
    """A trainer's state with the state of a gradient scaler, a fresh one if it has none.

    Args:
        state_dict: Of a trainer in float16, float32 or bfloat16; it is not changed.
        trainer: The trainer that goes on from it.

    Returns:
        The state for ``trainer.load_state_dict``.
    """
    if state_dict.get("grad_scaler"):  # that of a disabled scaler is empty
        return state_dict
    logger.warning(
        "the checkpoint is of a training without loss scaling: the gradient scaler starts with "
        f"its initial scale, {trainer.grad_scaler.get_scale():g}"
    )
    return {**state_dict, "grad_scaler": trainer.grad_scaler.state_dict()}
