"""A data set in a file that the processes of a machine and their workers map into memory."""

from __future__ import annotations

import mmap
import os
import pickle
import sys
from array import array
from collections.abc import Collection, Iterable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

_UNKNOWN = -1


class Layout(NamedTuple):
    """Where things are in the file: pickles, (N + 1) int64 offsets of them, (N,) int8 groups."""

    size: int  # N, the number of images
    offsets: int  # first byte of the offsets


def write_dataset(dicts: Iterable[Any], file: IO[bytes], *, drop: Collection[str] = ()) -> Layout:
    """Writes dicts in Detectron2's format.

    Args:
        dicts: One for each image.
        file: Where to write, from its beginning.
        drop: Keys of annotations that are left out.
    """
    drop = frozenset(drop)
    offsets, groups = array("q", [0]), array("b")
    for x in dicts:
        pickled = pickle.dumps(_without(x, drop), protocol=pickle.HIGHEST_PROTOCOL)
        file.write(pickled)
        offsets.append(offsets[-1] + len(pickled))
        try:
            groups.append(int(x["width"] > x["height"]))
        except (LookupError, TypeError):
            groups.append(_UNKNOWN)
    padding = -offsets[-1] % 8
    file.write(bytes(padding))
    file.write(offsets)
    file.write(groups)
    file.flush()
    return Layout(len(groups), offsets[-1] + padding)


def _without(x: Any, drop: frozenset[str]) -> Any:
    annotations = x.get("annotations") if isinstance(x, dict) else None
    if annotations is None:
        return x
    return {
        **x,
        "annotations": [
            a if drop.isdisjoint(a) else {key: a[key] for key in a if key not in drop}
            for a in annotations
        ],
    }


class SharedDataset(Dataset):
    """Dicts in Detectron2's format, read from a mapped file when they are asked for.

    All processes that map the file share its memory, which the system can free under pressure. It
    can be sent to other processes of the machine as long as this one lives.
    """

    def __init__(self, path: str, layout: Layout) -> None:
        """
        Args:
            path: File of :func:`write_dataset`.
            layout: What that function returned.

        Raises:
            OSError: The file cannot be opened.
        """
        self._layout = layout
        self._file = open(path, "rb")  # noqa: SIM115, others open it by this path
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._offsets = np.frombuffer(self._map, np.int64, layout.size + 1, layout.offsets)
        self._groups = np.frombuffer(
            self._map, np.int8, layout.size, layout.offsets + self._offsets.nbytes
        )

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self._map)

    def __len__(self) -> int:
        return self._layout.size

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # raises IndexError
        start, end = self._offsets[index : index + 2].tolist()
        return pickle.loads(self._map[start:end])

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))

    def aspect_ratio_groups(self) -> np.ndarray:
        """Returns int8 (N,): 1 for landscape, 0 for portrait, -1 for images without a size."""
        return self._groups

    def __reduce__(self) -> tuple:
        return SharedDataset, (shared_path(self._file), self._layout)


def shared_path(file: IO[bytes], pid: int | None = None) -> str:
    """Returns a path by which other processes of this machine can open a file without a name.

    Args:
        file: The file.
        pid: The process that keeps the file open. Default: this one.
    """
    if not sys.platform.startswith("linux"):
        raise RuntimeError("data sets are shared on Linux only")
    return f"/proc/{os.getpid() if pid is None else pid}/fd/{file.fileno()}"
