"""Counts what a GPU would have to do, without one.

A :class:`PretendTensor` claims not to be on the CPU, so that code takes the path that it takes on a
GPU; its values are on the CPU, where every operator is actually computed. What passes between the
two is recorded:

* a launch is an operator on the device that is neither a view nor a mere allocation. (Some
  operators launch several kernels; the number of calls is what the host pays for.)
* a wait is a call for which the host needs the device to have finished: reading a value (``item``,
  an ``if``), a shape that depends on values (``nonzero``, indexing by a mask), a copy to the host,
  and a copy from the host that is not ``non_blocking``.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_CPU = torch.device("cpu")
# Tensors on this device have no values, so it needs no driver.
_DEVICE = torch.device("meta")
_ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
_VALUE_DEPENDENT = ("nonzero", "masked_select", "unique", "_unique2", "unique_consecutive")
_COPIES = ("_to_copy", "copy_")


class PretendTensor(torch.Tensor):
    """A tensor that claims not to be on the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor) -> PretendTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=_DEVICE,
        )
        tensor.values = values
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    def new_tensor(self, data: object, **kwargs) -> Tensor:
        """Creates the tensor on the host and copies it, as on a GPU."""
        return _tensor(data, **{"dtype": self.dtype, "device": self.device, **kwargs})

    def __getitem__(self, index: object) -> Tensor:
        """Copies a list that is used as an index to the device."""
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(
            tuple(_tensor(x, device=self.device) if isinstance(x, list) else x for x in parts)
        )

    def tolist(self) -> list:
        """Copies the values to the host first."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError(f"{function} on a pretended GPU outside of `PretendGPU`")


class PretendGPU(TorchDispatchMode):
    """Runs and counts operators on :class:`PretendTensor` within this context.

    Attributes:
        launches: Name of an operator -> number of calls.
        waits: Name of an operator -> number of calls for which the host waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def forget(self) -> None:
        """Resets the counters."""
        self.launches.clear()
        self.waits.clear()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x.device == _DEVICE and not isinstance(x, PretendTensor) for x in inputs):
            raise RuntimeError(f"{function} got a tensor without values, made in an unknown way")
        comes_from_device = any(isinstance(x, PretendTensor) for x in inputs)
        goes_to_device = comes_from_device
        if kwargs.get("device") is not None:
            goes_to_device = torch.device(kwargs["device"]).type == _DEVICE.type
            kwargs["device"] = _CPU
        if comes_from_device and goes_to_device:
            _check_devices(function, args, inputs)
        if comes_from_device or goes_to_device:
            self._count(function, args, kwargs, inputs, goes_to_device)
        args, kwargs = tree_map_only(PretendTensor, lambda x: x.values, (args, kwargs))
        out = function(*args, **kwargs)
        if not goes_to_device or function is torch.ops.aten._local_scalar_dense.default:
            return out
        # An in-place operator returns the tensor that it was given.
        known = {id(x.values): x for x in inputs if isinstance(x, PretendTensor)}
        return tree_map_only(
            Tensor, lambda x: known[id(x)] if id(x) in known else PretendTensor(x), out
        )

    def _count(self, function, args, kwargs, inputs: list[Tensor], goes_to_device: bool) -> None:
        name = function.overloadpacket.__name__
        if _waits(name, args, kwargs, inputs, goes_to_device):
            self.waits[name] += 1
        if name not in _ALLOCATIONS and name != "_local_scalar_dense" and not function.is_view:
            self.launches[name] += 1


def _check_devices(function, args, inputs: list[Tensor]) -> None:
    """Raises the error of a GPU about operands on different devices.

    As there, an operand of the host may be a single value, the source of a copy, or an index.
    """
    name = function.overloadpacket.__name__
    if name in _COPIES:
        return
    allowed = args[1] if name in ("index", "index_put", "index_put_") else ()
    allowed = {id(x) for x in allowed if x is not None}
    for x in inputs:
        if not isinstance(x, PretendTensor) and x.dim() > 0 and id(x) not in allowed:
            raise RuntimeError(f"{function}: expected all tensors to be on the same device")


def _waits(name: str, args, kwargs, inputs: list[Tensor], goes_to_device: bool) -> bool:
    if name == "_local_scalar_dense" or name in _VALUE_DEPENDENT:
        return True
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name in ("index", "index_put", "index_put_"):
        has_mask = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        # Writing a single value where a mask is true does not need the mask's values.
        return has_mask and (name == "index" or args[2].numel() > 1)
    if name in _COPIES:
        on_device = [isinstance(x, PretendTensor) for x in inputs]
        crosses = not goes_to_device or not all(on_device)
        is_blocking = not kwargs.get("non_blocking", len(args) > 2 and args[2])
        return crosses and (is_blocking or not goes_to_device)
    return False


def pretend(tensor: Tensor) -> PretendTensor:
    """Returns a leaf on the pretended GPU with the values of a tensor."""
    return PretendTensor(tensor.detach().clone()).requires_grad_(tensor.requires_grad)


def _tensor(data: object, *, device: torch.device | str | None = None, **kwargs) -> Tensor:
    """Replaces ``torch.tensor``, which ignores the data for a device without values."""
    tensor = _make_tensor(data, **kwargs)
    return tensor if device is None else tensor.to(device)


def _autocast(device_type: str, *args, **kwargs) -> torch.autocast:
    """Replaces ``torch.autocast``, which does not support the device."""
    return _make_autocast("cpu" if device_type == _DEVICE.type else device_type, *args, **kwargs)


_make_tensor, _make_autocast = torch.tensor, torch.autocast


@contextlib.contextmanager
def pretended_gpu() -> Iterator[PretendGPU]:
    """Enters a :class:`PretendGPU`, with the patches of torch that it needs."""
    replaced = {"tensor": _tensor, "autocast": _autocast}
    with mock.patch.multiple(torch, **replaced), PretendGPU() as gpu:
        yield gpu


def count(run: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
    """Returns launches and waits of the second of two calls; the first may fill caches."""
    with pretended_gpu() as gpu:
        run()
        gpu.forget()
        run()
        return Counter(gpu.launches), Counter(gpu.waits)
