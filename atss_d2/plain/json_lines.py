"""Files of JSON lines that grow while a program runs, and survive that it is killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .files import replacing

# A killed process loses nothing that it has written; a machine without power at most this much.
_SYNC_SECONDS = 10.0


class JsonLines:
    """A file to which JSON objects are appended, one per line."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: The file; it is created by the first :meth:`append`.
        """
        self.path = path
        self._file: int | None = None
        self._next_sync = 0.0

    def recover(self, accept: Callable[[dict[str, Any]], bool]) -> int:
        """Removes lines that are not whole: the last one after a kill, any after a power cut.

        Args:
            accept: Called with the object of each whole line; returns whether to keep the line.

        Returns:
            The number of lines that were removed.
        """
        if not self.path.exists():
            return 0
        bad, end, last_good = [], 0, 0
        with open(self.path, "rb") as file:
            for line in file:
                start, end = end, end + len(line)
                row = parse_line(line)
                if row is not None and accept(row):
                    last_good = end
                else:
                    bad.append((start, end))
        if bad and bad[0][0] >= last_good:
            os.truncate(self.path, last_good)
        elif bad:
            with replacing(self.path) as temporary:
                _copy_without(self.path, temporary, bad)
        return len(bad)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Appends objects; they are in the file when this returns.

        Raises:
            OSError: They could not be written, for example because the disk is full.
        """
        # ASCII, as file names may contain what is not Unicode.
        data = memoryview("".join(json.dumps(row) + "\n" for row in rows).encode("ascii"))
        if not data:
            return
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            sync_folder(self.path.parent)
        while data:
            data = data[os.write(self._file, data) :]
        if time.monotonic() >= self._next_sync:
            os.fsync(self._file)
            self._next_sync = time.monotonic() + _SYNC_SECONDS

    def close(self) -> None:
        """Writes everything to the disk and closes the file."""
        if self._file is not None:
            file, self._file = self._file, None
            try:
                os.fsync(file)
            finally:
                os.close(file)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """Returns the object of a line; None if the line is torn or is not a JSON object."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def write_durably(path: Path, text: str) -> None:
    """Writes a text file that is on the disk, whole, when this returns."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes new names in a folder survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds a lock that ends with this process, however that ends; yields whether it was free.

    Args:
        path: The file to lock, which is created and stays.
        wait: Whether to wait until the lock is free.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    # Of the process, not of the file descriptor: workers that outlive it do not hold the lock.
    with open(path, "a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True


def _copy_without(source: Path, target: Path, gaps: list[tuple[int, int]]) -> None:
    """Copies a file without some ranges of bytes, which are in order."""
    with open(source, "rb") as old, open(target, "wb") as new:
        for gap_start, gap_end in gaps:
            while chunk := old.read(min(gap_start - old.tell(), 1 << 20)):
                new.write(chunk)
            old.seek(gap_end)
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())
