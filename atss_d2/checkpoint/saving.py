"""Writes checkpoint files atomically."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..plain.files import replacing
from .loading import import_safetensors

__all__ = ["save_checkpoint", "save_file", "write_atomically"]

_SUFFIXES = (".pth", ".safetensors")


def save_file(
    state: Mapping[str, Any],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Writes weights in a format that :func:`load_file` and Detectron2 read.

    The file is written beside ``path``, flushed to disk, and then moved into place: if anything
    interrupts this, ``path`` contains either what it contained before or all of the new content.

    Args:
        state: A state dict, or a checkpoint with one under ``"model"``. Only ``.pth`` can store the
            other entries of a checkpoint; save plain numbers, text, containers and tensors.
        path: Ends in ``.pth`` or ``.safetensors``. Missing folders are created.
        metadata: Text about the weights, found under ``"metadata"`` when the file is loaded.
            Default: the ``"metadata"`` of ``state``.

    Returns:
        ``path``.

    Raises:
        ValueError: The suffix is unknown, a weight is not a tensor, or the format cannot store an
            entry; the message names it.
        OSError: The file cannot be written.
        ImportError: The suffix is ``.safetensors`` and the library is not installed.
    """
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"'{path}' must end in one of {', '.join(_SUFFIXES)}")
    checkpoint = dict(state) if isinstance(state.get("model"), Mapping) else {"model": state}
    checkpoint["model"] = _tensors(checkpoint["model"])
    metadata = checkpoint.pop("metadata", None) if metadata is None else metadata
    if metadata:
        checkpoint["metadata"] = _text(metadata)
    content = _torch_bytes(checkpoint) if path.suffix == ".pth" else _safetensors_bytes(checkpoint)
    write_atomically(path, content)
    return path


def save_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes what ``torch.save`` can write, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    write_atomically(path, _torch_bytes(checkpoint))


def write_atomically(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Replaces a file and flushes it to disk; interrupted, it leaves the old or the new content.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    path = Path(path)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(path.parent)
    except OSError as error:  # which may not name a file, or name the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from error


def _tensors(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = copy.copy(weights)  # with the state dict's attribute, torch's module versions
    for name, value in weights.items():
        if isinstance(value, (np.ndarray, np.generic)):
            value = torch.from_numpy(np.array(value))
        if not isinstance(value, Tensor):
            raise ValueError(f"weights must be tensors, '{name}' is a {type(value).__name__}")
        tensors[name] = value.detach()
    return tensors


def _text(metadata: Mapping[str, str]) -> dict[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata must be text, {key!r} is {value!r}")
    return dict(metadata)


def _torch_bytes(checkpoint: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()  # torch's writer would hide why a file could not be written
    torch.save(checkpoint, buffer)
    return buffer.getbuffer()


def _safetensors_bytes(checkpoint: dict[str, Any]) -> bytes:
    others = sorted(set(checkpoint) - {"model", "metadata"})
    if others:
        raise ValueError(
            f"safetensors holds tensors and text, but not {', '.join(others)}: write a .pth, or "
            "only the weights under 'model'"
        )
    tensors, memory = {}, set()
    for name, tensor in checkpoint["model"].items():
        tensor = tensor.cpu().contiguous()
        # The format has no views: tensors that share memory are each written in full.
        if tensor.untyped_storage().data_ptr() in memory:
            tensor = tensor.clone()
        memory.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor
    return import_safetensors().save(tensors, metadata=checkpoint.get("metadata"))


def _sync_folder(path: Path) -> None:
    """Flushes a new name in a folder to disk."""
    if not hasattr(os, "O_DIRECTORY"):  # folders cannot be opened here
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
