"""An unpickler for numpy arrays and plain containers, and nothing else.

A pickle is a small program that names functions to call. Here, names are looked up in the table
:data:`MAKERS` instead of being imported, so a file cannot call anything else. numpy's own
constructors are not in the table: a forged dtype makes numpy treat bytes of the file as addresses
of objects. :class:`DType` and :class:`Array` replace them and record what the file says; an array
is then made from checked bytes.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

# Real and complex numbers and booleans, as dtype.__reduce__ writes them. Neither objects nor
# records (which may contain objects).
_DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")


class ForbiddenGlobalError(Exception):
    """A file asked for something that is not in the table; ``name`` is its dotted name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class NotPlainError(Exception):
    """A file contains something other than numbers, text, arrays of numbers and containers."""


def load_pickle(file: BinaryIO, admitted: Mapping[str, Any]) -> Any:
    """Reads one pickle.

    Args:
        file: Open for reading.
        admitted: What a file may ask for besides arrays and plain containers, by dotted name.

    Returns:
        Numbers, strings, lists, tuples, dicts, OrderedDicts, sets and numpy arrays, and instances
        of what was admitted.

    Raises:
        ForbiddenGlobalError: The file asks for anything else; no code in it was executed.
        NotPlainError: It contains, for example, an array of objects.
        Exception: Of any kind, as the file may contain any bytes.
    """
    value = _Unpickler(file, admitted).load()
    return _finish(value, {}, list(admitted.values()))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, admitted: Mapping[str, Any]) -> None:
        super().__init__(file, encoding="latin1")  # strings of Python 2 are raw bytes
        self._admitted = admitted

    def find_class(self, module: str, name: str) -> Any:
        # Python 2 used another name for the module of set and complex.
        key = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if key in MAKERS:
            return MAKERS[key]
        if key in self._admitted:
            return self._admitted[key]
        raise ForbiddenGlobalError(key)


class _Sealed(type):
    """The type of the classes that a file can name, so that it cannot set their attributes."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"an attribute of a class that is set: {name!a}")


class DType(metaclass=_Sealed):
    """Stands in for ``numpy.dtype``: the name of a numeric type and its byte order."""

    __slots__ = ("_byte_order", "_name", "is_plain")

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        if name not in _DTYPES:
            raise NotPlainError(f"an array of dtype {name!a}, not of numbers")
        self._name = name
        self._byte_order = "|"
        self.is_plain = True

    def __setstate__(self, state: tuple) -> None:
        _, byte_order, sub_array, names, fields = state[:5]
        if byte_order not in ("<", ">", "=", "|") or (sub_array, names, fields) != (None,) * 3:
            raise NotPlainError("an array of records, not of numbers")
        self._byte_order = byte_order

    def finish(self) -> np.dtype:
        if not self.is_plain:
            raise NotPlainError("an array of records, not of numbers")
        return np.dtype(self._name).newbyteorder(self._byte_order)


class NDArray(metaclass=_Sealed):
    """Stands in for the class ``numpy.ndarray``, which a file may name but not call."""

    __slots__ = ()

    def __new__(cls, *args: Any) -> NDArray:
        raise NotPlainError("a call of numpy.ndarray")


class Array(metaclass=_Sealed):
    """Stands in for an array, which a pickle creates empty and fills later."""

    __slots__ = ("_array", "is_plain")
    __hash__ = None  # type: ignore[assignment]  (neither a key nor a member of a set)

    def __init__(self, array_class: type, shape: tuple, kind: bytes | str) -> None:
        if array_class is not NDArray:
            raise NotPlainError("a subclass of numpy.ndarray")
        self._array: np.ndarray | None = None
        self.is_plain = True

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        self._array = _array(data, dtype, shape, "F" if is_fortran else "C")

    def finish(self) -> np.ndarray:
        if self._array is None:
            raise pickle.UnpicklingError("an array without content")
        return self._array


def _array(data: bytes | bytearray | str, dtype: DType, shape: tuple, order: str) -> np.ndarray:
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, DType):
        raise NotPlainError("an array of objects, not of numbers")
    real = dtype.finish()
    if any(side < 0 for side in shape) or math.prod(shape) * real.itemsize != len(data):
        raise pickle.UnpicklingError(
            f"an array of shape {tuple(shape)} and dtype {real} with {len(data)} bytes"
        )
    array = np.ndarray(shape, real, buffer=data, order=order)
    # A writable copy, in the byte order of this machine.
    return array.astype(real.newbyteorder("="))


class _Scalar(metaclass=_Sealed):
    """Stands in for the function that makes numpy scalars."""

    __slots__ = ()

    def __new__(cls, dtype: DType, data: bytes | str) -> np.generic:
        return _array(data, dtype, (), "C")[()]


class _FromBuffer(metaclass=_Sealed):
    """Stands in for the function that makes arrays in pickle protocol 5."""

    __slots__ = ()

    def __new__(cls, data: bytes | bytearray, dtype: DType, shape: tuple, order: str = "C"):
        return _array(data, dtype, shape, order)


class _Encode(metaclass=_Sealed):
    """Stands in for ``codecs.encode``, with which Python 3 writes bytes for Python 2."""

    __slots__ = ()

    def __new__(cls, text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise NotPlainError(f"bytes in the encoding {encoding!a}")
        return str.encode(text, "latin1")


class _NoBytes(metaclass=_Sealed):
    """Stands in for the class ``bytes``, which Python 3 calls to write empty bytes for Python 2."""

    __slots__ = ()

    def __new__(cls) -> bytes:
        return b""


MAKERS: dict[str, Any] = {
    "numpy.dtype": DType,
    "numpy.ndarray": NDArray,
    "_codecs.encode": _Encode,
    "collections.OrderedDict": OrderedDict,
    "builtins.bytes": _NoBytes,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
}
for _package in ("numpy.core", "numpy._core"):  # before and since numpy 2
    MAKERS[f"{_package}.multiarray._reconstruct"] = Array
    MAKERS[f"{_package}.multiarray.scalar"] = _Scalar
    MAKERS[f"{_package}.numeric._frombuffer"] = _FromBuffer


def _finish(value: Any, done: dict[int, tuple[Any, Any]], admitted: list) -> Any:
    """Replaces what stands in for arrays by arrays, in all containers below ``value``.

    ``done`` maps the id of each container to the container and its result: containers may contain
    themselves, and tuples that share their members would take exponential time.
    """
    if isinstance(value, (Array, DType)):
        return value.finish()
    if id(value) in done:
        return done[id(value)][1]
    done[id(value)] = (value, value)
    if isinstance(value, tuple):
        finished = tuple(_finish(item, done, admitted) for item in value)
        done[id(value)] = (value, finished)
        return finished
    if isinstance(value, list):
        value[:] = [_finish(item, done, admitted) for item in value]
    elif isinstance(value, dict):
        for key, item in dict.items(value):
            dict.__setitem__(value, key, _finish(item, done, admitted))
    elif callable(value) and not any(value is other for other in admitted):
        raise NotPlainError("a function or class in place of a value")
    if isinstance(value, OrderedDict):
        for name in set(vars(value)) - {"_metadata"}:  # torch's, of a state dict
            del vars(value)[name]
    if not isinstance(value, type) and hasattr(value, "__dict__"):
        attributes = vars(value)
        attributes.update({name: _finish(x, done, admitted) for name, x in attributes.items()})
    return value
