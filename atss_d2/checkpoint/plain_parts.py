"""Reads the plain parts of a checkpoint and leaves out its objects.

Training checkpoints often contain objects besides their weights: logs, configs, whole schedulers.
Our own interpreter reads the pickle in them and calls nothing that the file names; where the file
would create an object, it leaves a placeholder, which is removed here.

No allocation is larger than the file: tensors are views of their storages, and a file cannot ask
for more storage than it has bytes.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .numpy_pickle import Array, DType, NotPlainError
from .pickle_interpreter import Interpreter
from .plain_values import LeftOut, Name

__all__ = ["PlainParts", "read_plain_parts"]

# How files of torch.save before 1.6 begin: magic number, then version.
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


class PlainParts(NamedTuple):
    """What was read, and how many objects were left out below each key of the file."""

    content: Any
    left_out: Counter[tuple[str, str]]  # (key at the top of the file, class of the object)
    num_tensors: int


def read_plain_parts(path: Path) -> PlainParts:
    """Reads the tensors, numbers, text, arrays of numbers and containers of a checkpoint.

    Args:
        path: A file of ``torch.save``, in either format, or a pickle with the suffix ``.pkl``.

    Returns:
        The content without the entries of dicts that are, or contain in a list, tuple or set,
        anything else; and what these were.

    Raises:
        Exception: Of any kind, as the file may contain any bytes. No code in it is executed.
    """
    if path.suffix.lower() == ".pkl":
        with path.open("rb") as file:
            value = Interpreter(_Bounded(file), _no_storage).run()
    elif zipfile.is_zipfile(path):
        value = _read_zip(path)
    else:
        value = _read_legacy(path)
    pruning = _Pruning()
    return PlainParts(pruning.prune(value, ""), pruning.left_out, pruning.num_tensors)


class _Bounded:
    """A file that is never read past its end: a read of 2**60 bytes allocates nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.readline, self.tell = file.readline, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.size - self.tell():
            raise EOFError("the file ends too early")
        return self._file.read(size)


class _Storages:
    """The storages of a file, by key; ``size`` bounds their total number of bytes."""

    def __init__(self, size: int) -> None:
        self.by_key: dict[str, Tensor] = {}
        self._left = size

    def allocate(self, key: str, num_values: int, dtype: torch.dtype) -> Tensor:
        """Returns memory (num_values,) for a storage, whose size and type must not change."""
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
    """Reads a storage's id: dtype (None if unknown), its name, key, number of values, the rest."""
    if not isinstance(pid, tuple) or len(pid) < length or pid[0] != "storage":
        raise pickle.UnpicklingError("an identifier that is not that of a storage")
    _, kind, key, _, num_values, *rest = pid
    if not isinstance(kind, Name) or type(key) is not str or type(num_values) is not int:
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
            return Interpreter(_Whole(file.read()), load).run()


class _Whole:
    """Bytes with the file methods that the parser calls."""

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
        head = [Interpreter(file, _no_storage).run() for _ in range(2)]
        if head != [_LEGACY_MAGIC, _LEGACY_VERSION]:
            raise pickle.UnpicklingError("not a file of torch.save")
        system = Interpreter(file, _no_storage).run()
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise pickle.UnpicklingError("the file was written on a big-endian machine")
        storages, skipped = _Storages(file.size), {}

        def load(pid: Any) -> Any:
            if type(pid) is tuple and pid[:1] == ("module",) and isinstance(pid[1], Name):
                return pid[1]  # the class of a model, with its source
            dtype, name, key, num_values, rest = _described(pid, 6)
            if rest != (None,):
                raise pickle.UnpicklingError("a view of a storage, of torch before 0.4")
            if dtype is None:
                skipped[key] = name
                return LeftOut(name)
            return storages.allocate(key, num_values, dtype)

        value = Interpreter(file, load).run()
        keys = Interpreter(file, _no_storage).run()
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
    """Reads the values of a storage, which may have a type that numpy lacks."""
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


class _Pruning:
    """Removes what was left out; visits every container once."""

    def __init__(self) -> None:
        self.left_out: Counter[tuple[str, str]] = Counter()
        self.num_tensors = 0
        self._done: dict[int, tuple[Any, Any]] = {}  # with the original, whose id stays taken

    def prune(self, value: Any, top: str) -> Any:
        """Returns a value without what was left out; a :class:`LeftOut` if nothing else remains."""
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
            self._done[id(value)] = (value, value)  # for containers that contain themselves
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
