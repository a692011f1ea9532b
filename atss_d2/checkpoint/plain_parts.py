"""Reads the plain parts of a checkpoint and leaves out its objects.

Training checkpoints often hold objects beside their weights: logs, configs, whole schedulers. This
module interprets the opcodes of a pickle itself. A name in the file stays a name: nothing is
imported or looked up, and what is called are the few functions of ``_MAKERS``, which build
tensors, arrays of numbers and containers from checked values. Whatever else the file would call
becomes a :class:`LeftOut`, an object without any behavior, and is removed at the end.

No allocation is larger than the file: tensors are views of their storages, and a file cannot ask
for more storage than it has bytes.
"""

from __future__ import annotations

import math
import os
import pickle
import pickletools
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .numpy_pickle import MAKERS as _NUMPY_MAKERS
from .numpy_pickle import Array, DType, NDArray, NotPlainError

__all__ = ["PlainParts", "read_plain_parts"]

# Of torch.save before 1.6: magic number, then version.
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    f"torch.{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
    }.items()
}
_SCALARS = (str, bytes, int, float, bool, complex, type(None))


class PlainParts(NamedTuple):
    """What was read, and how many objects were left out below each key of the file."""

    content: Any
    left_out: Counter[tuple[str, str]]  # (key at the top of the file, class of the object)
    num_tensors: int


class LeftOut:
    """Stands for an object that a file would have made; ``name`` says of which class."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class _Name(LeftOut):
    """A class or function that a file names. It is never looked up."""

    __slots__ = ()


def read_plain_parts(path: Path) -> PlainParts:
    """Reads tensors, numbers, text, arrays of numbers and containers of a checkpoint.

    Args:
        path: A file of ``torch.save``, of either format, or a pickle that ends in ``.pkl``.

    Returns:
        The content without the entries of dicts that are, or hold in a list, tuple or set, anything
        else; and what these were.

    Raises:
        Exception: Of any kind, as the file may hold any bytes. Nothing in it was executed.
    """
    if path.suffix.lower() == ".pkl":
        with path.open("rb") as file:
            value = _Machine(_Bounded(file), _no_storage).run()
    elif zipfile.is_zipfile(path):
        value = _read_zip(path)
    else:
        value = _read_legacy(path)
    pruning = _Pruning()
    return PlainParts(pruning.prune(value, ""), pruning.left_out, pruning.num_tensors)


# Files


class _Bounded:
    """A file of which no more is read than it has: a read of 2**60 bytes allocates nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.readline, self.tell = file.readline, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.size - self.tell():
            raise EOFError("the file ends too early")
        return self._file.read(size)


class _Storages:
    """The storages of a file, by key; ``size`` bounds the bytes of all of them."""

    def __init__(self, size: int) -> None:
        self.by_key: dict[str, Tensor] = {}
        self._left = size

    def allocate(self, key: str, num_values: int, dtype: torch.dtype) -> Tensor:
        """Memory (num_values,) for a storage, which must be of the same kind each time."""
        known = self.by_key.get(key)
        if known is not None:
            if (known.numel(), known.dtype) != (num_values, dtype):
                raise pickle.UnpicklingError(f"storage {key!a} is described in two ways")
            return known
        self._left -= num_values * dtype.itemsize
        if num_values < 0 or self._left < 0:
            raise pickle.UnpicklingError(f"storage {key!a} is larger than the file")
        self.by_key[key] = torch.empty(num_values, dtype=dtype)
        return self.by_key[key]


def _no_storage(pid: Any) -> Any:
    raise pickle.UnpicklingError("a storage of torch in a file without storages")


def _described(pid: Any, length: int) -> tuple[torch.dtype | None, str, str, int, tuple]:
    """Dtype (None if unknown), its name, key, number of values, and the rest of a storage's id."""
    if not isinstance(pid, tuple) or len(pid) < length or pid[0] != "storage":
        raise pickle.UnpicklingError("an identifier that is not that of a storage")
    _, kind, key, _, num_values, *rest = pid
    if not isinstance(kind, _Name) or type(key) is not str or type(num_values) is not int:
        raise pickle.UnpicklingError("a storage without type, key or size")
    return _STORAGES.get(kind.name), kind.name, key, num_values, tuple(rest)


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        mains = [x for x in archive.namelist() if x.endswith("/data.pkl") and x.count("/") == 1]
        if len(mains) != 1:
            raise pickle.UnpicklingError("no data.pkl in the archive, or several")
        main = mains[0]
        folder = main.removesuffix("data.pkl")
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise pickle.UnpicklingError(f"{info.filename!a} is compressed")
        names = set(archive.namelist())
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("the file was written on a big-endian machine")
        storages = _Storages(path.stat().st_size)

        def load(pid: Any) -> Any:
            dtype, name, key, num_values, _ = _described(pid, 5)
            if dtype is None:
                return LeftOut(name)
            is_new = key not in storages.by_key
            storage = storages.allocate(key, num_values, dtype)
            if is_new:
                info = archive.getinfo(f"{folder}data/{key}")
                if info.file_size != _num_bytes(storage):
                    raise pickle.UnpicklingError(f"storage {key!a} has another size in the file")
                with archive.open(info) as file:
                    _fill(storage, file)
                    file.read(1)  # the checksum is compared at the end
            return storage

        with archive.open(main) as file:
            return _Machine(_Whole(file.read()), load).run()


class _Whole:
    """Bytes with the methods of a file that the parser calls."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position, self.size = data, 0, len(data)

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= len(self._data) - self._position:
            raise EOFError("the file ends too early")
        self._position += size
        return self._data[self._position - size : self._position]

    def readline(self) -> bytes:
        end = self._data.find(b"\n", self._position) + 1
        return self.read((end or len(self._data)) - self._position)


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as raw:
        file = _Bounded(raw)
        head = [_Machine(file, _no_storage).run() for _ in range(2)]
        if head != [_LEGACY_MAGIC, _LEGACY_VERSION]:
            raise pickle.UnpicklingError("no file of torch.save")
        system = _Machine(file, _no_storage).run()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise pickle.UnpicklingError("the file was written on a big-endian machine")
        storages, skipped = _Storages(file.size), {}

        def load(pid: Any) -> Any:
            if type(pid) is tuple and pid[:1] == ("module",) and isinstance(pid[1], _Name):
                return pid[1]  # the class of a model, with its source
            dtype, name, key, num_values, rest = _described(pid, 6)
            if rest != (None,):
                raise pickle.UnpicklingError("a view of a storage, of torch before 0.4")
            if dtype is None:
                skipped[key] = name
                return LeftOut(name)
            return storages.allocate(key, num_values, dtype)

        value = _Machine(file, load).run()
        keys = _Machine(file, _no_storage).run()
        if skipped:
            # Their sizes are not known, so neither is where the next storage begins.
            raise NotPlainError(f"a storage of the type {next(iter(skipped.values()))!a}")
        if not isinstance(keys, list) or sorted(keys) != sorted(storages.by_key):
            raise pickle.UnpicklingError("the list of storages does not fit the content")
        for key in keys:
            storage = storages.by_key[key]
            if int.from_bytes(file.read(8), "little") != storage.numel():
                raise pickle.UnpicklingError(f"storage {key!a} has another size in the file")
            _fill(storage, raw)
        return value


def _num_bytes(storage: Tensor) -> int:
    return storage.numel() * storage.element_size()


def _fill(storage: Tensor, file: BinaryIO) -> None:
    """Reads the values of a storage, which may be of a type that numpy does not have."""
    if not storage.numel():
        return
    is_bool = storage.dtype == torch.bool
    memory = memoryview(storage.view(torch.uint8).numpy())
    while memory:
        count = file.readinto(memory)
        if not count:
            raise EOFError("the file ends within a storage")
        memory = memory[count:]
    if is_bool:  # any other byte would be neither true nor false
        storage.copy_(storage.view(torch.uint8) != 0)


# What a file may make


def _ordered_dict(items: Any = ()) -> OrderedDict:
    made = OrderedDict()
    for pair in items:
        if type(pair) not in (tuple, list) or len(pair) != 2:
            raise pickle.UnpicklingError("an OrderedDict of other things than pairs")
        made[_key(pair[0])] = pair[1]
    return made


def _set(items: Any = ()) -> set:
    if type(items) is not list:
        raise pickle.UnpicklingError("a set that is not made of a list")
    return {_key(item) for item in items}


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
    # Also no more values than the storage has: views that repeat values would grow when copied.
    if last >= max(1, storage.numel()) or num_values > storage.numel():
        raise pickle.UnpicklingError("a tensor that is larger than its storage")
    if not num_values:
        return storage.new_empty(tuple(size))
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Any, *_: Any) -> Any:
    if not isinstance(data, (Tensor, LeftOut)):
        raise pickle.UnpicklingError("a parameter that is no tensor")
    return data


def _typed_tensor(function: Any, kind: Any, args: Any, _: Any) -> Any:
    plain = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch._tensor.Tensor")
    if not isinstance(kind, _Name) or kind.name not in plain:
        return LeftOut(kind.name if isinstance(kind, _Name) else "a tensor of unknown type")
    if not isinstance(function, _Name) or function.name not in _REBUILDERS:
        return LeftOut(kind.name)
    return _REBUILDERS[function.name](*args)


def _array(kind: Any, shape: Any, code: Any) -> Array:
    if not isinstance(kind, _Name) or kind.name != "numpy.ndarray":
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
_MAKERS: dict[str, Callable] = {
    **_REBUILDERS,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
    "torch.Size": _size,
    **{name: _array if maker is Array else maker for name, maker in _NUMPY_MAKERS.items()},
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "builtins.frozenset": _set,
}


def _key(value: Any) -> Any:
    """A key of a dict or a member of a set; the hash of deeply nested tuples overflows the stack.

    The members of a tuple are therefore plain values themselves.
    """
    members = value if type(value) is tuple else (value,)
    if not all(type(x) in _SCALARS or isinstance(x, LeftOut) for x in members):
        raise pickle.UnpicklingError("a key that is neither a number nor text")
    return value


# The interpreter

_MARK = object()
# Opcodes that push what stands behind them in the file.
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}


class _Machine:
    """Interprets one pickle."""

    def __init__(self, file: Any, load_storage: Callable[[Any], Any]) -> None:
        self._opcodes: Iterator = pickletools.genops(file)
        self._budget = 16 * file.size + 2**20
        self._load_storage = load_storage
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """What the pickle holds."""
        for opcode, argument, _ in self._opcodes:
            name = opcode.name
            if name in _LITERALS:
                self._push(argument)
            elif name in _NEW:
                self._push(_NEW[name]())
            elif name == "STOP":
                return self._pop()
            elif name not in ("PROTO", "FRAME"):
                handler = getattr(self, f"_op_{name.lower()}", None)
                if handler is None:
                    raise pickle.UnpicklingError(f"the opcode {name}")
                handler(argument)
        raise EOFError("the pickle has no end")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise pickle.UnpicklingError("a mark in place of a value")
        return value

    def _top(self) -> Any:
        value = self._stack[-1]
        if value is _MARK:
            raise pickle.UnpicklingError("a mark in place of a value")
        return value

    def _since_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    # The stack and the memo

    def _op_pop(self, _: Any) -> None:
        self._stack.pop()

    def _op_pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _op_dup(self, _: Any) -> None:
        self._push(self._top())

    def _op_put(self, index: int) -> None:
        self._memo[index] = self._top()

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._top()

    def _op_get(self, index: int) -> None:
        self._push(self._memo[index])

    _op_binget = _op_long_binget = _op_get

    # Containers

    def _op_tuple(self, _: Any) -> None:
        self._push(tuple(self._since_mark()))

    def _op_tuple1(self, _: Any) -> None:
        self._push((self._pop(),))

    def _op_tuple2(self, _: Any) -> None:
        second, first = self._pop(), self._pop()
        self._push((first, second))

    def _op_tuple3(self, _: Any) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self._push((first, second, third))

    def _op_list(self, _: Any) -> None:
        self._push(self._since_mark())

    def _op_dict(self, _: Any) -> None:
        items = self._since_mark()
        self._push({})
        self._set_items(items)

    def _op_frozenset(self, _: Any) -> None:
        self._push(_set(self._since_mark()))

    def _op_append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _op_appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, LeftOut):
            raise pickle.UnpicklingError(f"a {type(target).__name__} that is appended to")

    def _op_setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _op_setitems(self, _: Any) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) in (dict, OrderedDict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, LeftOut):
            raise pickle.UnpicklingError(f"a {type(target).__name__} whose items are set")

    def _op_additems(self, _: Any) -> None:
        items, target = self._since_mark(), self._top()
        if type(target) is set:
            target.update(map(_key, items))
        elif not isinstance(target, LeftOut):
            raise pickle.UnpicklingError(f"a {type(target).__name__} that is added to")

    # Names and what would be calls

    def _op_global(self, argument: str) -> None:
        self._push(_name(*argument.split(" ", 1)))

    def _op_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise pickle.UnpicklingError("a name that is not text")
        self._push(_name(module, name))

    def _op_inst(self, argument: str) -> None:
        self._call(_name(*argument.split(" ", 1)), tuple(self._since_mark()))

    def _op_obj(self, _: Any) -> None:
        function, *arguments = self._since_mark()
        self._call(function, tuple(arguments))

    def _op_reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self._call(function, arguments)

    _op_newobj = _op_reduce

    def _op_newobj_ex(self, _: Any) -> None:
        keywords, arguments, function = self._pop(), self._pop(), self._pop()
        if keywords and isinstance(function, _Name):  # no maker takes any
            function = LeftOut(function.name)
        self._call(function, arguments)

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, LeftOut):
            raise pickle.UnpicklingError(f"a call of a {type(function).__name__}")
        maker = _MAKERS.get(function.name) if isinstance(function, _Name) else None
        if maker is None:
            self._push(LeftOut(function.name))
        elif type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"a call with a {type(arguments).__name__}")
        else:
            self._spend(arguments)
            try:
                self._push(maker(*arguments))
            except NotPlainError:  # an array of objects and the like
                self._push(LeftOut(function.name))

    def _spend(self, arguments: tuple) -> None:
        """Counts what makers copy: a file can give them the same long list again and again."""
        self._budget -= sum(len(x) for x in arguments if type(x) in (list, tuple, str, bytes, dict))
        if self._budget < 0:
            raise pickle.UnpicklingError("copies that are much larger than the file")

    def _op_build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, (Array, DType)):
            if type(state) is not tuple:
                raise pickle.UnpicklingError("an array whose state is no tuple")
            self._spend(state)
            try:
                target.__setstate__(state)  # of ours, which checks what it takes
            except NotPlainError:
                target.is_plain = False
        elif type(target) is OrderedDict:
            # Torch's versions of modules. Other attributes would shadow the methods.
            metadata = state.get("_metadata") if type(state) is dict else None
            if type(metadata) in (dict, OrderedDict):
                target._metadata = metadata
        elif not isinstance(target, (LeftOut, Tensor)):
            raise pickle.UnpicklingError(f"a {type(target).__name__} whose state is set")

    def _op_binpersid(self, _: Any) -> None:
        self._push(self._load_storage(self._pop()))


def _name(module: str, name: str) -> _Name:
    return _Name(f"{module.replace('__builtin__', 'builtins')}.{name}")


# The end


class _Pruning:
    """Removes what was left out; every container is looked at once."""

    def __init__(self) -> None:
        self.left_out: Counter[tuple[str, str]] = Counter()
        self.num_tensors = 0
        self._done: dict[int, tuple[Any, Any]] = {}  # with the original, whose id stays taken

    def prune(self, value: Any, top: str) -> Any:
        """A value without what was left out; a :class:`LeftOut` if nothing else remains."""
        if isinstance(value, (Tensor, np.ndarray)):
            self.num_tensors += 1
            return value
        if isinstance(value, DType):
            return LeftOut("numpy.dtype")
        if isinstance(value, Array):
            return self._finish(value)
        if not isinstance(value, (dict, list, tuple, set)):
            return value
        if id(value) not in self._done:
            self._done[id(value)] = (value, value)  # for containers that hold themselves
            self._done[id(value)] = (value, self._prune_container(value, top))
        return self._done[id(value)][1]

    def _finish(self, array: Array) -> Any:
        if not array.is_plain:
            return LeftOut("numpy.ndarray")
        self.num_tensors += 1
        return array.finish()

    def _prune_container(self, value: Any, top: str) -> Any:
        if isinstance(value, dict):
            for key, item in list(value.items()):
                where = top or (key if type(key) is str else repr(key)[:40])
                parts = key if type(key) is tuple else (key,)
                unplain = next((x for x in parts if isinstance(x, LeftOut)), None)
                item = self.prune(item, where) if unplain is None else unplain
                if isinstance(item, LeftOut):
                    self.left_out[where, item.name] += 1
                    del value[key]
                else:
                    value[key] = item
            return value
        items = [self.prune(item, top) for item in value]
        unplain = next((item for item in items if isinstance(item, LeftOut)), None)
        if unplain is not None:
            return unplain
        if isinstance(value, list):
            value[:] = items
            return value
        return value if isinstance(value, set) else tuple(items)
