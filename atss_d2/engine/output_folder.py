"""Claims an output folder for one run: a lock, and no mixing with the files of an earlier run."""

from __future__ import annotations

import datetime
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..checkpoint.earlier_run import holds_a_run, remove_leftovers, set_aside
from ..checkpoint.run_folder import is_remote
from ..config import ConfigError
from .main_process import decided_by_main

__all__ = ["claimed_folder", "locked"]

logger = logging.getLogger(__name__)

_LOCK = ".lock"
# A killed run may need a moment to end, before it is resumed.
_PATIENCE = 5.0
_held: set[int] = set()


def _close_in_child() -> None:
    """Closes the lock in a forked worker, which may outlive a killed training for seconds."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def claimed_folder(
    output_dir: str | os.PathLike[str], *, resume: bool = False, overwrite: bool = False
) -> Iterator[None]:
    """Keeps an output folder for a training run as long as its block lasts.

    Call it in all processes; the first one holds the lock. Temporary files of writers that were
    killed are removed.

    Args:
        output_dir: The folder; it is created.
        resume: Whether the run continues the one in the folder.
        overwrite: Whether a run in the folder, if it has any checkpoint, is moved to a subfolder
            ``previous_N``; otherwise it is an error.

    Raises:
        ConfigError: Another run is using the folder; or an earlier one has left checkpoints and
            neither ``resume`` nor ``overwrite`` is set; or the folder cannot be written.
    """
    if is_remote(output_dir):
        yield
        return
    folder = Path(output_dir)
    with ExitStack() as stack:

        def claim() -> None:
            stack.enter_context(locked(folder, patience=_PATIENCE if resume else 0.0))
            remove_leftovers(folder)
            if not resume:
                _make_room(folder, overwrite=overwrite)

        decided_by_main(claim)
        yield


def _make_room(folder: Path, *, overwrite: bool) -> None:
    name = holds_a_run(folder)
    if name and not overwrite:
        raise ConfigError(
            f"'{folder}' holds a run ({name}): continue it by --resume, start again by "
            "--overwrite, which moves its files to a subfolder, or give another folder by "
            "train.output_dir=FOLDER (yaml: OUTPUT_DIR FOLDER)"
        )
    moved = set_aside(folder)  # without checkpoints, the records of a run that ended early
    if moved is not None:
        print(f"The files of the earlier run are now in {moved}", flush=True)


@contextmanager
def locked(folder: Path, *, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock of a folder; the kernel releases it when this process dies.

    Args:
        folder: It is created. Who holds its lock is written into the file ``.lock`` in it.
        patience: Seconds to wait for another process to release it.

    Raises:
        ConfigError: Another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(
            f"the output folder '{folder}' cannot be written ({error.strerror}): give another one "
            "by train.output_dir=FOLDER (yaml: OUTPUT_DIR FOLDER)"
        ) from None
    _held.add(descriptor)
    try:
        _lock(descriptor, folder, time.monotonic() + patience)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip()
            raise ConfigError(
                f"another run is using '{folder}' ({holder or 'unknown process'}): wait for it, "
                "stop it, or give another folder by train.output_dir=FOLDER (yaml: OUTPUT_DIR "
                "FOLDER)"
            ) from None
        except OSError as error:
            logger.warning(
                f"the file system of '{folder}' has no locks ({error.strerror}): take care that no "
                "second run uses the folder"
            )
        break
    start = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    text = f"process {os.getpid()} on {socket.gethostname()}, since {start}\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
