"""Lets all processes start from the same checkpoint, also if only some of them can read it.

Machines need no common disk: the newest checkpoint that any process finds decides, and processes
that do not have the same file receive it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm

from ..checkpoint import CheckpointError, SafeCheckpointer, check_checkpoint, load_file
from ..checkpoint.sources import local_checkpoint, split_convention
from .processes import control_group

logger = logging.getLogger(__name__)

_CHUNK = 1 << 24  # bytes


class Start(NamedTuple):
    """What training starts from.

    Attributes:
        path: A file that this process can read, or ``""`` for a start from scratch.
        is_resumed: Whether it is a checkpoint of this run, from which training goes on.
        folder: Holds the file if it was received; removed with this object.
    """

    path: str
    is_resumed: bool
    folder: tempfile.TemporaryDirectory | None = None

    def load(self, checkpointer: SafeCheckpointer) -> None:
        """Loads it, all of it or only weights."""
        if self.is_resumed:
            checkpointer.resume_from(self.path)
        else:
            checkpointer.resume_or_load(self.path, resume=False)
        if self.folder is not None:
            self.folder.cleanup()


class _Found(NamedTuple):
    """The file of a process, as it tells the others."""

    iteration: int
    name: str
    digest: str


def find_start(
    checkpointer: SafeCheckpointer, weights: str, *, resume: bool, for_use: bool = False
) -> Start:
    """Finds what all processes start from; all must call it.

    Args:
        checkpointer: Knows the folder of the run.
        weights: The initial weights, as for :class:`SafeCheckpointer`.
        resume: Continue from the newest checkpoint that any process finds, if there is one.
        for_use: As for :func:`check_checkpoint`.

    Raises:
        CheckpointNotFoundError: No process can read ``weights``.
        CheckpointError: As for :func:`check_checkpoint`.
    """
    path = _last_checkpoint(checkpointer) if resume else ""
    if comm.get_world_size() == 1:
        if not path:
            check_checkpoint(weights, for_use=for_use)
        return Start(path or weights, bool(path))
    found = comm.all_gather(_found(path) if path else None)
    if any(found):
        folder = _share(path, found)
        return Start(_file_in(folder) if folder else path, True, folder)
    error = None
    try:
        check_checkpoint(weights, for_use=for_use)
        path = local_checkpoint(weights) if weights else ""
    except CheckpointError as reason:
        error = reason
    found = comm.all_gather(_found(path, iteration=0) if path else None)
    if not any(found):
        if error is not None:
            raise error
        return Start("", False)
    folder = _share(path, found)
    return Start(_renamed(weights, _file_in(folder)) if folder else weights, False, folder)


def _last_checkpoint(checkpointer: SafeCheckpointer) -> str:
    return checkpointer.get_checkpoint_file() if checkpointer.has_checkpoint() else ""


def _found(path: str, iteration: int | None = None) -> _Found:
    if iteration is None:
        match = re.fullmatch(r"model_(\d+)\.pth", os.path.basename(path))
        iteration = int(match[1]) if match else load_file(path).get("iteration", -1)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while content := file.read(_CHUNK):
            digest.update(content)
    return _Found(iteration, os.path.basename(path), digest.hexdigest())


def _renamed(weights: str, local: str) -> str:
    """Returns how a received file is loaded: with the convention and options of the original."""
    convention, file = split_convention(weights)
    options = file.partition("?")[2]
    return (f"{convention}://" if convention else "") + local + (f"?{options}" if options else "")


def _share(path: str, found: list[_Found | None]) -> tempfile.TemporaryDirectory | None:
    """Sends the newest of the files to the processes that lack it.

    Returns:
        A folder with the received file; None if ``path`` is the same file.
    """
    newest = max(file.iteration for file in found if file)
    source = next(i for i, file in enumerate(found) if file and file.iteration == newest)
    chosen = found[source]
    receivers = [i for i, file in enumerate(found) if file is None or file.digest != chosen.digest]
    if not receivers:
        return None
    rank = comm.get_rank()
    logger.warning(
        f"'{chosen.name}' is on the disk of process {source}, but not on those of "
        f"{', '.join(map(str, receivers))}, which receive it"
    )
    folder = tempfile.TemporaryDirectory() if rank in receivers else None
    # With its suffix, which tells the format.
    target = Path(folder.name) / chosen.name if folder else None
    _broadcast(Path(path) if rank == source else None, target, source)
    return folder


def _file_in(folder: tempfile.TemporaryDirectory) -> str:
    return str(next(Path(folder.name).iterdir()))


def _broadcast(path: Path | None, target: Path | None, source: int) -> None:
    """Sends the file ``path`` of one process to all, which write it to their ``target``, if any."""
    size = torch.tensor([path.stat().st_size if path else 0])
    _broadcast_tensor(size, source)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(path.open("rb")) if path else None
        writer = stack.enter_context(target.open("wb")) if target else None
        for start in range(0, int(size), _CHUNK):
            chunk = torch.empty(min(_CHUNK, int(size) - start), dtype=torch.uint8)
            if reader is not None:
                reader.readinto(chunk.numpy())
            _broadcast_tensor(chunk, source)
            if writer is not None:
                writer.write(chunk.numpy())


def _broadcast_tensor(tensor: torch.Tensor, source: int) -> None:
    dist.broadcast(tensor, source, group=control_group() or comm._get_global_gloo_group())
