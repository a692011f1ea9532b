"""Loads a data set in one process of each machine, for all processes of the machine.

That process leaves the work to a child, whose memory is gone when it has written its file: what
Python holds while it reads annotations is many times what is left of them.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from .coco_reader import load_coco_boxes
from .errors import DataError
from .shared_dataset import Layout, SharedDataset, shared_path, write_dataset

logger = logging.getLogger(__name__)

MASK_KEYS = ("segmentation", "keypoints")
# Other processes hear from those that load at least this often, in seconds: process groups take
# silence for a failure.
_PATIENCE = 5.0


def load_shared(load: Callable[[], Any], *, drop: Collection[str] = ()) -> Any:
    """Calls a function that loads a data set in one process of each machine.

    All processes of the job must call this together. What the function does to Detectron2's
    metadata is done in all processes; of other side effects, nothing remains.

    Args:
        load: Returns a list of dicts in Detectron2's format. Another result cannot be shared: then
            every process calls the function itself.
        drop: Keys of annotations that are left out.

    Returns:
        A :class:`~atss_d2.data.shared_dataset.SharedDataset` of the list, or what ``load`` returns
        if it is not a list, or if processes cannot be forked as on Linux.

    Raises:
        Exception: What the function raised, on all processes.
    """
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return load()
    machine = _machine()
    machines = comm.all_gather(machine)
    loaders = sorted({x: rank for rank, x in reversed(list(enumerate(machines)))}.values())
    is_loader = comm.get_rank() in loaders
    with (
        contextlib.closing(_Loading(load, drop)) if is_loader else contextlib.nullcontext() as mine
    ):
        while True:
            outcomes = comm.all_gather(mine.outcome(_PATIENCE) if is_loader else None)
            errors = [x.error for x in outcomes if x is not None and x.error is not None]
            if errors:
                raise errors[0]
            if all(outcomes[rank] is not None for rank in loaders):
                break
        outcome = outcomes[machines.index(machine)]
        for name, values in outcome.metadata:
            vars(MetadataCatalog.get(name)).update(pickle.loads(values))
        dataset = None
        if outcome.layout is not None:
            with contextlib.suppress(OSError):
                dataset = SharedDataset(outcome.path, outcome.layout)
        comm.synchronize()  # the file has no name, and is gone once nobody has opened it
    if dataset is None:
        return load()
    logger.info(
        f"{len(dataset)} images, {dataset.num_bytes / 2**20:.1f} MiB shared by all processes of "
        "this machine"
    )
    return dataset


def _machine() -> tuple[str, ...]:
    """Returns what processes have in common that can open each other's files."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot_id, os.readlink("/proc/self/ns/pid"), str(os.getuid())


class _Outcome(NamedTuple):
    """What a loading process did."""

    error: Exception | None = None
    path: str = ""
    layout: Layout | None = None  # None: the result is not a list
    metadata: tuple[tuple[str, bytes], ...] = ()  # data sets and their changed values


class _Loading:
    """A child process that loads a data set, and the file for its result."""

    def __init__(self, load: Callable[[], Any], drop: Collection[str]) -> None:
        # Without a name: nothing is left of it, however this process ends.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_load_and_write, args=(load, drop, self._file, shared_path(self._file), theirs)
        )
        self._process.start()
        theirs.close()
        self._outcome: _Outcome | None = None

    def outcome(self, seconds: float) -> _Outcome | None:
        """Waits for the outcome; returns None if it takes longer."""
        if self._outcome is None and self._pipe.poll(seconds):
            try:
                self._outcome = self._pipe.recv()
            except EOFError:
                self._process.join()
                self._outcome = _Outcome(DataError(_ending(self._process.exitcode)))
        return self._outcome

    def close(self) -> None:
        """Ends the process and closes the file, which others may have mapped."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._file.close()


def _ending(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return (
            "the process that loads the data set was killed, as happens when the machine has no "
            "memory left: end other programs, or split the annotation file"
        )
    return f"the process that loads the data set ended with exit code {exit_code}"


def _load_and_write(
    load: Callable[[], Any], drop: Collection[str], file: IO[bytes], path: str, pipe: Any
) -> None:
    """Runs in the child."""
    for number in (signal.SIGINT, signal.SIGUSR1):  # the parent decides what they mean
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # half of the time of reading JSON, for millions of objects without a cycle
    torch.set_num_threads(1)  # the threads of the parent do not exist here
    try:
        if set(MASK_KEYS) <= set(drop):
            _use_coco_reader()
        before = {name: MetadataCatalog.get(name).as_dict() for name in MetadataCatalog.list()}
        dicts = load()
        layout = None
        if isinstance(dicts, list):
            try:
                layout = write_dataset(dicts, file, drop=drop)
            except OSError as error:
                raise DataError(
                    f"the data set does not fit into {tempfile.gettempdir()} ({error.strerror}): "
                    "set TMPDIR to a folder with more space"
                ) from error
        outcome = _Outcome(path=path, layout=layout, metadata=_changed_metadata(before))
    except Exception as error:
        outcome = _Outcome(_portable(error))
    pipe.send(outcome)


def _use_coco_reader() -> None:
    """Replaces, in this process, the loaders of data sets that are plain files of COCO."""
    for name in DatasetCatalog.list():
        function = DatasetCatalog[name]
        if (
            getattr(function, "__module__", "") == "detectron2.data.datasets.coco"
            and function.__qualname__ == "register_coco_instances.<locals>.<lambda>"
        ):
            values = inspect.getclosurevars(function).nonlocals
            arguments = [values[key] for key in ("json_file", "image_root", "name")]
            DatasetCatalog[name] = lambda arguments=arguments: load_coco_boxes(*arguments)


def _changed_metadata(before: dict[str, dict[str, Any]]) -> tuple[tuple[str, bytes], ...]:
    changed = []
    for name in MetadataCatalog.list():
        old, values = before.get(name, {}), {}
        for key, value in MetadataCatalog.get(name).as_dict().items():
            with contextlib.suppress(Exception):  # what cannot be compared or sent stays here
                if key not in old or (old[key] is not value and old[key] != value):
                    pickle.dumps(value)
                    values[key] = value
        if values:
            changed.append((name, pickle.dumps(values)))
    return tuple(changed)


def _portable(error: Exception) -> Exception:
    """Returns an error that other processes can raise, with the traceback of this one."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.__notes__ = ["".join(traceback.format_exception(error))]  # printed since Python 3.11
    return copy
