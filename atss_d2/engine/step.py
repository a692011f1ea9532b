"""One training step: in micro-batches, and only if the gradient is finite."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint import CheckpointError
from ..modeling.criterion import Criterion
from .accumulation import MicroBatches
from .amp import GradScaler, grad_scaler_state
from .nonfinite import NonFiniteError, Step, explain, likely_causes, local_report
from .rng import random_states

logger = logging.getLogger(__name__)

# A gradient scaler, at first 65536, is halved by every overflow.
_MAX_OVERFLOWS = 30


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one, which never takes a bad step.

    Weights, momentum and averages only change if the norm of the gradient over all parameters is
    finite. A loss that is not finite makes the gradient NaN on all processes, which so decide alike
    without another message. The host reads the losses and this norm once a step, where Detectron2
    waits for every loss.

    Attributes:
        grad_scaler: Scales the loss in float16; None in other precisions.
        micro_batches: What splits the batches.
        is_skipped: Whether the last step changed no weight.
        keep_step: Writes a step that stops the training into files, and returns their folder;
            None, as at first, for nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        autocast_dtype: torch.dtype | None = None,
        grad_scaler: GradScaler | None = None,
        accumulate: int = 1,
        max_skips: int = 0,
    ) -> None:
        """
        Args:
            model: The model, maybe wrapped for several processes; returns a dict of losses.
            data_loader: Yields the batches of this process.
            optimizer: The optimizer.
            autocast_dtype: Precision of the forward pass; None for that of the weights.
            grad_scaler: For float16.
            accumulate: Number of micro-batches that a batch is split into; it must divide the
                images of every batch.
            max_skips: How many steps in a row may be skipped before the training stops.
        """
        super().__init__(model, data_loader, optimizer)
        self.grad_scaler = grad_scaler
        self.is_skipped = False
        self._autocast_dtype = autocast_dtype
        self.micro_batches = MicroBatches(self.trained_model, accumulate)
        self._max_skips = max_skips
        self._num_skips = {"step": 0, "overflow": 0}  # in a row
        self.keep_step: Callable[[Step, nn.Module, torch.optim.Optimizer], str] | None = None
        self._buffers = changing_buffers(self.trained_model)

    @property
    def trained_model(self) -> nn.Module:
        """The model without a wrapper for several processes."""
        is_wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.module if is_wrapped else self.model

    def run_step(self) -> None:
        """Trains one iteration, or leaves weights, buffers and optimizer as they were.

        Raises:
            NonFiniteError: A loss or the gradient is not finite, and no step may be skipped
                anymore.
        """
        if not self.model.training:
            raise RuntimeError("the model is in evaluation mode: a hook did not restore its mode")
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        states, buffers = random_states(), [x.clone() for x in self._buffers]

        losses, norm = self.compute(data)
        self.is_skipped = not math.isfinite(norm)
        if self.is_skipped:
            for buffer, before in zip(self._buffers, buffers):
                buffer.copy_(before)
            self._skip(Step(self.iter, data, losses, norm, states))
        else:
            self._num_skips = dict.fromkeys(self._num_skips, 0)
            self._write_metrics({k: torch.tensor(x) for k, x in losses.items()}, data_time)
        self._update()

    def compute(self, batch: Sequence[Any]) -> tuple[dict[str, float], float]:
        """Computes the gradient of a batch, and calls ``after_backward`` of the hooks.

        Returns:
            The losses, and the norm of the gradient before the hooks change it.
        """
        losses = self._backward(batch)
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.trained_model)
        self.after_backward()
        # The only time that the host waits for a GPU.
        *values, norm = torch.stack([*(x.float() for x in losses.values()), norm]).tolist()
        return dict(zip(losses, values)), norm

    def _update(self) -> None:
        if self.grad_scaler is not None:  # it has seen an overflow itself, and does not step
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        elif not self.is_skipped:
            self.optimizer.step()

    def _skip(self, step: Step) -> None:
        """Warns of a step that is skipped.

        Raises:
            NonFiniteError: It is one too many.
        """
        reports = comm.all_gather(local_report(step))  # all processes are here
        is_overflow = self.grad_scaler is not None and not any(x["losses"] for x in reports)
        kind = "overflow" if is_overflow else "step"
        limit = max(self._max_skips, _MAX_OVERFLOWS) if is_overflow else self._max_skips
        self._num_skips[kind] += 1
        groups = self.optimizer.param_groups  # biases and backbones may have other rates
        main = max(groups, key=lambda group: sum(p.numel() for p in group["params"]))
        sentence = explain(step, reports, main["lr"])
        if self._num_skips[kind] > limit:
            raise NonFiniteError(f"{sentence}: {self._last_words(step)}")
        level = logging.DEBUG if is_overflow else logging.WARNING
        count = f"{self._num_skips[kind]} of at most {limit} in a row"
        logger.log(level, f"{sentence}: the step is skipped, {count}")

    def _last_words(self, step: Step) -> str:
        """Keeps the step; returns likely causes, and how to run it again."""
        causes = likely_causes(self.trained_model, step.batch, self._autocast_dtype)
        words = f"{'; '.join(causes[:2])}. No weight was changed"
        if self.keep_step is None:
            return words
        folder = self.keep_step(step, self.trained_model, self.optimizer)
        return f"{words}; to run this step again: tools/replay.py {folder}"

    def _backward(self, batch: Sequence[Any]) -> dict[str, Tensor]:
        """Computes the gradient of a batch; returns its losses, detached."""
        parts = self.micro_batches.split(batch)
        losses = self._backward_of(parts)
        if self.micro_batches.are_disproved():
            losses = self._backward_of(parts)
        return losses

    def _backward_of(self, parts: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        with self.micro_batches.normalized(parts) as weight:
            for index, part in enumerate(parts):
                # Gradients are averaged over processes once.
                with self._without_sync() if index + 1 < len(parts) else contextlib.nullcontext():
                    losses = self._forward(part)
                    if weight != 1:
                        losses = {name: loss * weight for name, loss in losses.items()}
                    if index == 0:
                        self.optimizer.zero_grad()
                    self._backward_from(sum(losses.values()))
                for name, loss in losses.items():
                    sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
        return sums

    def _forward(self, images: Sequence[Any]) -> dict[str, Tensor]:
        device_type = next(self.model.parameters()).device.type
        is_autocast = self._autocast_dtype is not None
        with torch.autocast(device_type, dtype=self._autocast_dtype, enabled=is_autocast):
            losses = self.model(images)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _backward_from(self, loss: Tensor) -> None:
        # So that other processes see a loss that is not finite, also one with a finite gradient.
        seed = torch.where(loss.isfinite(), 1.0, math.nan).to(loss.dtype)
        loss = loss if self.grad_scaler is None else self.grad_scaler.scale(loss)
        loss.backward(seed)

    def _without_sync(self) -> contextlib.AbstractContextManager:
        is_wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if is_wrapped else contextlib.nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Returns Detectron2's state; that of ``AMPTrainer`` with a gradient scaler."""
        state = super().state_dict()
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state of any precision; a gradient scaler without one starts anew.

        Raises:
            CheckpointError: The state is of other parameters, or they were grouped otherwise.
        """
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:
            raise CheckpointError(
                f"training cannot go on with this optimizer ({error}): the checkpoint was written "
                "with another optimizer, train.freeze or train.lr_factors. Take those, or begin "
                "with its weights, by train.init_checkpoint and another train.output_dir"
            ) from error
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(grad_scaler_state(state_dict, self.grad_scaler))


def gradient_norm(model: nn.Module) -> Tensor:
    """Returns the L2 norm of the gradient over all parameters, 0-dim."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    return torch.linalg.vector_norm(torch.stack([x.float() for x in norms]))


def changing_buffers(model: nn.Module) -> list[Tensor]:
    """Returns the buffers that a forward pass changes: running statistics, counters of losses."""
    kinds = (nn.modules.batchnorm._NormBase, Criterion)
    return [x for m in model.modules() if isinstance(m, kinds) for x in m.buffers()]
