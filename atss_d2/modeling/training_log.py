"""Logs scalars that are on a device, without making the host wait for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor


def training_iteration() -> int | None:
    """Returns the training iteration, which a resumed trainer restores; None outside training."""
    return get_event_storage().iter if has_event_storage() else None


_Watch = Callable[[dict[str, float]], None] | None


class TrainingLog:
    """Puts 0-dim tensors into Detectron2's event storage as ``atss/<name>``.

    ``EventStorage.put_scalar`` converts to a Python float, which stops the host until a GPU has
    caught up. Values on a GPU are therefore copied asynchronously and put one call later, when
    they have long arrived. Does nothing outside an ``EventStorage`` context.
    """

    def __init__(self) -> None:
        self._pending: tuple[list[str], Tensor, _Watch, torch.cuda.Event | None] | None = None

    def __getstate__(self) -> dict:
        return {"_pending": None}  # events cannot be copied or pickled

    def put(self, scalars: dict[str, Tensor], watch: _Watch = None) -> None:
        """Logs ``scalars``: at once from the CPU, with the next call from a GPU.

        Args:
            scalars: 0-dim tensors by name.
            watch: Is called with the numbers when they are written.
        """
        if not scalars or not has_event_storage():
            return
        names = list(scalars)
        values = torch.stack([value.detach().float() for value in scalars.values()])
        if values.is_cuda:
            previous, host = self._pending, torch.empty(len(names), pin_memory=True)
            host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            # Of the values' GPU, which need not be the current one ("cuda:1").
            event.record(torch.cuda.current_stream(values.device))
            self._pending = (names, host, watch, event)
            if previous is not None:
                previous[3].synchronize()
                self._write(*previous[:3])
        else:
            self._write(names, values, watch)

    @staticmethod
    def _write(names: list[str], values: Tensor, watch: _Watch) -> None:
        storage = get_event_storage()
        numbers = dict(zip(names, values.tolist()))
        for name, value in numbers.items():
            storage.put_scalar(f"atss/{name}", value)
        if watch is not None:
            watch(numbers)
