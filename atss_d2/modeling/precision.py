"""Where half precision is not enough: geometry, scores and losses."""

import contextlib

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Converts half precision to float32; keeps wider types (float64 for gradcheck)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def is_autocast_on(device_type: str) -> bool:
    """Returns whether autocast is on; also for devices that ``torch.autocast`` refuses, as meta."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def no_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """Returns a context outside autocast, which computes matrix products of float32 in half.

    Where autocast is off, there is nothing to leave, and nothing that an exporter would record.
    """
    if is_autocast_on(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
