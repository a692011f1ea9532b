"""Remembers what was seen of files, by path, size and time, so that the next start is quick."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...plain.files import replacing
from .probe import Probe

VERSION = 2  # to be raised when a check says something else about the same file
_MAX_PROBES = 5_000_000  # of one folder
_STATUS = ("size", "mtime", "ctime")  # a file with the same three is taken for unchanged
_NUMBERS = ("width", "height", "orientation", "num_bytes", "digest", "is_decoded")
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError)


def cache_folder() -> Path | None:
    """Returns the folder of the cache; None if this user has none that can be written.

    ``$ATSS_D2_CACHE`` is another folder, or turns the cache off if it is empty.
    """
    own = os.environ.get("ATSS_D2_CACHE")
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = os.path.join(root, "atss_d2") if own is None else own
    if not os.path.isabs(root):  # also "~/.cache", if there is no home
        return None
    folder = Path(root) / "checks"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


def status_of(path: str) -> tuple[int, int, int]:
    """Returns size and times of a file; (-1, -1, -1) if it cannot be seen."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class ProbeCache:
    """The probes of the images below one folder, in one file.

    A file that is missing, damaged or of another version is an empty cache; one that cannot be
    written is not an error.
    """

    def __init__(self, root: str) -> None:
        """
        Args:
            root: The images' common folder, which names the file.
        """
        folder = cache_folder()
        name = hashlib.sha256(os.path.abspath(root).encode(errors="surrogatepass")).hexdigest()
        self._file = folder and folder / f"images-{name[:24]}.npz"
        self._known: dict[str, tuple[tuple[int, int, int], Probe]] = {}
        if self._file and self._file.is_file():
            with contextlib.suppress(*_DAMAGED):
                self._known = _read(self._file)

    def get(self, path: str, status: tuple[int, int, int], *, full: bool) -> Probe | None:
        """Returns the probe of an unchanged file; None if there is none, or it was less thorough.

        Args:
            path: The file.
            status: Its size and times.
            full: Whether all pixels must have been decoded.
        """
        known = self._known.get(path)
        if known is None or known[0] != status or status[0] < 0:
            return None
        return known[1] if known[1].is_decoded or known[1].problem or not full else None

    def put(self, path: str, status: tuple[int, int, int], probe: Probe) -> None:
        """Adds a probe, unless the file could not be seen."""
        if status[0] >= 0 and probe.problem not in ("image_missing", "image_forbidden"):
            self._known[path] = status, probe

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        if self._file and len(self._known) <= _MAX_PROBES:
            with contextlib.suppress(OSError, ValueError), replacing(self._file) as temporary:
                _write(temporary, self._known)


def _write(path: Path, known: dict[str, tuple[tuple[int, int, int], Probe]]) -> None:
    probes = [probe for _, probe in known.values()]
    texts = {"path": list(known)} | {
        name: [getattr(probe, name) for probe in probes] for name in ("problem", "mode")
    }
    arrays = {name: np.array([getattr(x, name) for x in probes], np.int64) for name in _NUMBERS}
    statuses = np.array([status for status, _ in known.values()], np.int64).reshape(-1, 3)
    arrays |= {name: statuses[:, i] for i, name in enumerate(_STATUS)}
    for name, values in texts.items():
        content = "\0".join(values).encode(errors="surrogatepass")
        arrays[name] = np.frombuffer(content, np.uint8)
    with open(path, "wb") as file:
        np.savez(file, version=VERSION, num=len(known), **arrays)


def _read(path: Path) -> dict[str, tuple[tuple[int, int, int], Probe]]:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        if int(file["version"]) != VERSION or not int(file["num"]):
            return {}
        num = int(file["num"])
        columns: dict[str, Sequence[Any]] = {
            name: file[name].tolist() for name in (*_STATUS, *_NUMBERS)
        }
        for name in ("path", "problem", "mode"):
            columns[name] = bytes(file[name]).decode(errors="surrogatepass").split("\0")
    if any(len(column) != num for column in columns.values()):
        raise ValueError("columns of different lengths")
    columns["is_decoded"] = list(map(bool, columns["is_decoded"]))
    probes = map(Probe._make, zip(*(columns[name] for name in Probe._fields)))
    return dict(zip(columns["path"], zip(zip(*(columns[name] for name in _STATUS)), probes)))


class ResultCache:
    """Any result about one file that JSON can hold, remembered while the file is unchanged."""

    def __init__(self, path: str, *settings: str) -> None:
        """
        Args:
            path: The file that the result is about.
            *settings: Whatever else the result depends on.
        """
        self._status = list(status_of(path))
        folder = cache_folder()
        key = "\0".join((os.path.abspath(path), *settings)).encode(errors="surrogatepass")
        name = hashlib.sha256(key).hexdigest()
        self._file = folder and folder / f"result-{name[:24]}.json"

    def read(self) -> Any:
        """Returns the result; None if there is none for the file as it is now."""
        if self._file and self._file.is_file():
            with contextlib.suppress(*_DAMAGED, RecursionError, TypeError, AttributeError):
                content = json.loads(self._file.read_text(encoding="utf-8"))
                if content["version"] == VERSION and content["status"] == self._status:
                    return content["result"]
        return None

    def write(self, result: Any) -> None:
        """Writes the result, whole or not at all."""
        if self._file and self._status[0] >= 0:
            content = {"version": VERSION, "status": self._status, "result": result}
            unwritable = contextlib.suppress(OSError, ValueError, TypeError)
            with unwritable, replacing(self._file) as temporary:
                temporary.write_text(json.dumps(content), encoding="utf-8")
