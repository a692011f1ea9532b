"""A hook that clips the norm of the gradient."""

from __future__ import annotations

from detectron2.engine import HookBase
from torch import nn

from ..modeling.training_log import TrainingLog


class GradientClippingHook(HookBase):
    """Scales the gradient down if its norm over all parameters is too large.

    Runs between the backward pass and the optimizer step. Under float16 AMP the gradient is
    unscaled first, so that ``max_norm`` means the same with and without AMP. The norm before
    clipping is logged as ``atss/gradient_norm``.
    """

    def __init__(self, model: nn.Module, *, max_norm: float) -> None:
        """
        Args:
            model: The trained model.
            max_norm: Maximum L2 norm.

        Raises:
            ValueError: ``max_norm`` is not positive.
        """
        if max_norm <= 0:
            raise ValueError(f"max_norm must be > 0, got {max_norm}")
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._max_norm = max_norm
        self._log = TrainingLog()  # a GPU's norm comes one iteration later, without a wait

    def after_backward(self) -> None:
        scaler = getattr(self.trainer, "grad_scaler", None)
        if scaler is not None:
            scaler.unscale_(self.trainer.optimizer)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm)
        self._log.put({"gradient_norm": norm})
