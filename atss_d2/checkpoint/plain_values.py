"""Makes the values of a checkpoint without objects: tensors, arrays, containers, placeholders.

Everything that a file says about a value is checked here before the value is made.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .numpy_pickle import MAKERS as _NUMPY_MAKERS
from .numpy_pickle import Array, NDArray, NotPlainError

__all__ = ["MAKERS", "LeftOut", "Name", "checked_key", "make_set"]

_SCALARS = (str, bytes, int, float, bool, complex, type(None))


class LeftOut:
    """Stands in for an object that a file would have created; ``name`` is its class."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Name(LeftOut):
    """A class or function that a file names. It is never looked up."""

    __slots__ = ()


def _ordered_dict(items: Any = ()) -> OrderedDict:
    made = OrderedDict()
    for pair in items:
        if type(pair) not in (tuple, list) or len(pair) != 2:
            raise pickle.UnpicklingError("an OrderedDict of other things than pairs")
        made[checked_key(pair[0])] = pair[1]
    return made


def make_set(items: Any = ()) -> set:
    if type(items) is not list:
        raise pickle.UnpicklingError("a set that is not made of a list")
    return {checked_key(item) for item in items}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    if isinstance(storage, LeftOut):
        return storage
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Tensor) or len(size) != len(stride) or len(size) > 64:
        raise pickle.UnpicklingError("a tensor without storage or shape")
    if any(type(x) is not int or not 0 <= x < 2**62 for x in numbers):
        raise pickle.UnpicklingError("a tensor whose shape is not made of numbers")
    num_values = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if num_values else 0
    # Nor may it have more values than the storage: views that repeat values would grow when copied.
    if last >= max(1, storage.numel()) or num_values > storage.numel():
        raise pickle.UnpicklingError("a tensor that is larger than its storage")
    if not num_values:
        return storage.new_empty(tuple(size))
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, (Tensor, LeftOut)):
        raise pickle.UnpicklingError("a parameter that is not a tensor")
    return data


def _typed_tensor(function: Any, kind: Any, args: Any, _: Any) -> Any:
    plain = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch._tensor.Tensor")
    if not isinstance(kind, Name) or kind.name not in plain:
        return LeftOut(kind.name if isinstance(kind, Name) else "a tensor of unknown type")
    if not isinstance(function, Name) or function.name not in _REBUILDERS:
        return LeftOut(kind.name)
    return _REBUILDERS[function.name](*args)


def _array(kind: Any, shape: Any, code: Any) -> Array:
    if not isinstance(kind, Name) or kind.name != "numpy.ndarray":
        raise NotPlainError("a subclass of numpy.ndarray")
    return Array(NDArray, shape, code)


def _size(items: Any = ()) -> tuple:
    return tuple(items)


_REBUILDERS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
MAKERS: dict[str, Callable] = {
    **_REBUILDERS,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
    "torch.Size": _size,
    **{name: _array if maker is Array else maker for name, maker in _NUMPY_MAKERS.items()},
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": make_set,
    "builtins.frozenset": make_set,
}


def checked_key(value: Any) -> Any:
    """Returns a key of a dict or a member of a set, after checking it.

    The members of a tuple must be plain values: hashing deeply nested tuples overflows the stack.
    """
    members = value if type(value) is tuple else (value,)
    if not all(type(x) in _SCALARS or isinstance(x, LeftOut) for x in members):
        raise pickle.UnpicklingError("a key that is neither a number nor text")
    return value
