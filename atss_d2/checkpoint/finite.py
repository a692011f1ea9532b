"""Finds numbers in a checkpoint that no training can go on from."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["nonfinite_tensors"]

# The entries of a checkpoint with weights, whose buffers may be masks.
_WEIGHTS = ("model.", "trained_model.")


def nonfinite_tensors(
    state: Mapping[str, Any], *, parameters: Collection[str] | None = None
) -> list[str]:
    """Returns the dotted names of tensors that hold NaN or an infinity.

    A buffer whose only such numbers are minus infinity is a mask, and is not returned.

    Args:
        state: A checkpoint: tensors in dicts, lists and tuples.
        parameters: Names of the model's parameters, which are not masks. None: unknown, any weight
            may be a mask.
    """
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in _tensors(state):
        if tensor.is_floating_point() and tensor.numel() and tensor.layout is torch.strided:
            by_device[tensor.device].append((name, tensor))
    names = []
    for named in by_device.values():
        # One host synchronization for all tensors of a device.
        is_finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
        names += [
            name
            for (name, tensor), finite in zip(named, is_finite)
            if not finite and not _is_mask(name, tensor, parameters or ())
        ]
    return names


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{name}.{index}")


def _is_mask(name: str, tensor: Tensor, parameters: Collection[str]) -> bool:
    if not name.startswith(_WEIGHTS) or name.partition(".")[2] in parameters:
        return False
    return not (tensor.isnan() | (tensor == math.inf)).any()
