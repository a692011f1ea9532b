"""Lets all processes start from the same checkpoint, also if only some of them can read it.

Machines need no common disk: the newest checkpoint that any process finds decides, and processes
that do not have the same file receive it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm

from ..checkpoint import CheckpointError, check_checkpoint
from ..checkpoint.run_folder import newest_checkpoint, numbered_name
from ..checkpoint.sources import local_checkpoint, split_convention
from .processes import control_group

logger = logging.getLogger(__name__)

_CHUNK = 1 << 24  # bytes


class _Found(NamedTuple):
    """The file of a process, as it tells the others."""

    name: str
    digest: str


def bring_to_main(folder: str | os.PathLike[str]) -> None:
    """Gives the first process the newest whole checkpoint of a run, if another machine has it.

    All processes must call it.

    Args:
        folder: The output folder, which may be another one on every machine.
    """
    if comm.get_world_size() == 1:
        return
    found = None
    if comm.get_local_rank() == 0:
        with contextlib.suppress(CheckpointError):  # the first process says so later
            found = newest_checkpoint(folder)
    iterations = comm.all_gather(-1 if found is None else found.iteration)
    newest = max(iterations)
    if newest <= iterations[0]:
        return
    source, rank = iterations.index(newest), comm.get_rank()
    target = Path(folder, numbered_name(newest)) if rank == 0 else None
    temporary = target and target.with_name(f".{target.name}.received")
    if temporary:
        temporary.parent.mkdir(parents=True, exist_ok=True)
    _broadcast(found.path if rank == source else None, temporary, source)
    if target:
        temporary.replace(target)
        logger.warning(f"Process {source} has the newest checkpoint, which is now also '{target}'")


@contextlib.contextmanager
def same_checkpoint(path: str | os.PathLike[str]) -> Iterator[str]:
    """Gives all processes a file of the first one, within the context; all must call it.

    Args:
        path: The file, which may be missing or another one in other processes.
    """
    path = str(path)
    if comm.get_world_size() == 1:
        yield path
        return
    found = comm.all_gather(_found(path) if os.path.isfile(path) else None)
    with _shared(path, found) as local:
        yield local


@contextlib.contextmanager
def same_weights(weights: str, *, for_use: bool = False) -> Iterator[str]:
    """Gives all processes the same weights to start from, within the context; all must call it.

    Args:
        weights: As for :class:`SafeCheckpointer`. Only some processes need to be able to read it.
        for_use: As for :func:`check_checkpoint`.

    Raises:
        CheckpointNotFoundError: No process can read it.
        CheckpointError: As for :func:`check_checkpoint`.
    """
    if comm.get_world_size() == 1:
        check_checkpoint(weights, for_use=for_use)
        yield weights
        return
    error, path = None, ""
    try:
        check_checkpoint(weights, for_use=for_use)
        path = local_checkpoint(weights) if weights else ""
    except CheckpointError as reason:
        error = reason
    found = comm.all_gather(_found(path) if path else None)
    if not any(found):
        if error is not None:
            raise error
        yield ""
        return
    with _shared(path, found) as local:
        yield weights if local == path else _renamed(weights, local)


def _found(path: str) -> _Found:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while content := file.read(_CHUNK):
            digest.update(content)
    return _Found(os.path.basename(path), digest.hexdigest())


def _renamed(weights: str, local: str) -> str:
    """Returns how a received file is loaded: with the convention and options of the original."""
    convention, file = split_convention(weights)
    options = file.partition("?")[2]
    return (f"{convention}://" if convention else "") + local + (f"?{options}" if options else "")


@contextlib.contextmanager
def _shared(path: str, found: list[_Found | None]) -> Iterator[str]:
    """Gives the file of the first process that has one to those that do not have the same.

    Args:
        path: The file of this process.
        found: The files of all.
    """
    source = next(i for i, file in enumerate(found) if file)
    chosen = found[source]
    receivers = [i for i, file in enumerate(found) if file is None or file.digest != chosen.digest]
    if not receivers:
        yield path
        return
    rank = comm.get_rank()
    logger.warning(
        f"'{chosen.name}' is on the disk of process {source}, but not on those of "
        f"{', '.join(map(str, receivers))}, which receive it"
    )
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, chosen.name)  # with its suffix, which tells the format
        is_receiver = rank in receivers
        _broadcast(Path(path) if rank == source else None, copy if is_receiver else None, source)
        yield str(copy) if is_receiver else path


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
