"""Loads a data set in one process of each machine, for all processes of the machine."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import pickle
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n

from .children import call_in_children, can_fork
from .coco_reader import load_coco_boxes
from .errors import DataError
from .shared_dataset import Layout, SharedDataset, shared_path, write_dataset

logger = logging.getLogger(__name__)

MASK_KEYS = ("segmentation", "keypoints")


def load_shared(
    load: Callable[[], Any],
    *,
    drop: Collection[str] = (),
    check: Callable[[list], Sequence[str]] = lambda dicts: (),
) -> Any:
    """Calls a function that loads a data set in a child of one process of each machine.

    All processes of the job must call this together. What the function does to Detectron2's
    metadata is done in all processes; of other side effects, nothing remains.

    Args:
        load: Returns a list of dicts in Detectron2's format. Another result cannot be shared: then
            every process calls the function itself.
        drop: Keys of annotations that are left out.
        check: Called with the list; returns warnings, which the first process logs.

    Returns:
        A :class:`~atss_d2.data.shared_dataset.SharedDataset` of the list, or what ``load`` returns
        if it is not a list, or if processes cannot be forked as on Linux.

    Raises:
        Exception: What a function raised, on all processes.
    """
    if not can_fork():
        return _load_and_check(load, check)
    machine = _machine()
    machines = comm.all_gather(machine)
    loaders = {machines.index(x) for x in machines}
    with tempfile.TemporaryFile() as file:  # nothing is left of it, however this process ends
        work = functools.partial(_load_and_write, load, drop, check, file)
        results = call_in_children(loaders, work, "loads the data set")
        mine = results[machines.index(machine)]
        for name, values in mine.metadata:
            vars(MetadataCatalog.get(name)).update(pickle.loads(values))
        dataset = None
        if mine.layout is not None:
            with contextlib.suppress(OSError):
                dataset = SharedDataset(mine.path, mine.layout)
        comm.synchronize()  # others open the file as long as this process has it open
    if dataset is None:
        return _load_and_check(load, check)
    _log(mine.warnings)
    logger.info(
        f"{len(dataset)} images, {dataset.num_bytes / 2**20:.1f} MiB shared by all processes of "
        "this machine"
    )
    return dataset


def _machine() -> tuple[str, ...]:
    """Returns what processes have in common that can open each other's files."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return boot_id, os.readlink("/proc/self/ns/pid"), str(os.getuid())


class _Result(NamedTuple):
    """What a child did."""

    path: str  # of the file
    layout: Layout | None  # None: the result is not a list
    metadata: tuple[tuple[str, bytes], ...]  # data sets and their changed values
    warnings: Sequence[str] = ()


def _load_and_check(load: Callable[[], Any], check: Callable[[list], Sequence[str]]) -> Any:
    dicts = load()
    if isinstance(dicts, list):
        _log(check(dicts))
    return dicts


def _log(warnings: Sequence[str]) -> None:
    for text in warnings if comm.is_main_process() else ():
        log_first_n(logging.WARNING, text, key="message")  # a test set is loaded many times


def _load_and_write(
    load: Callable[[], Any],
    drop: Collection[str],
    check: Callable[[list], Sequence[str]],
    file: IO[bytes],
) -> _Result:
    if set(MASK_KEYS) <= set(drop):
        _use_coco_reader()
    before = {name: MetadataCatalog.get(name).as_dict() for name in MetadataCatalog.list()}
    dicts = load()
    layout, warnings = None, ()
    if isinstance(dicts, list):
        warnings = check(dicts)
        try:
            layout = write_dataset(dicts, file, drop=drop)
        except OSError as error:
            raise DataError(
                f"the data set does not fit into {tempfile.gettempdir()} ({error.strerror}): "
                "set TMPDIR to a folder with more space"
            ) from error
    return _Result(shared_path(file, os.getppid()), layout, _changed_metadata(before), warnings)


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
