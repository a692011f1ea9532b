"""Reads checkpoint files without executing any code in them."""

from __future__ import annotations

import logging
import os
import re
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .numpy_pickle import ForbiddenGlobalError, NotPlainError, load_pickle
from .plain_parts import read_plain_parts
from .plain_values import LeftOut

__all__ = ["CheckpointError", "CheckpointNotFoundError", "import_safetensors", "load_file"]

logger = logging.getLogger(__name__)

_OTHER_WAY = (
    "; to take only the weights, call load_file(..., weights_only_parts=True) or run "
    "tools/convert_weights.py with --weights-only-parts"
)
# Modules from which torch never admits anything.
_NEVER_ADMITTED = ("sys", "os", "posix", "nt")
_ZIP_FOLDER = 0x10  # the bit of an entry's attributes
_TORCH_REFUSAL = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module \S+ is bl)")
_TORCH_OPCODE = "Unsupported operand"
_TORCH_REASON = re.compile(r"WeightsUnpickler error:\s*(\S.*)")


class CheckpointError(ValueError):
    """A file cannot be used as a checkpoint; the message names the file, the reason and the fix."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no such file, or it cannot be downloaded."""


def load_file(path: str | os.PathLike[str], *, weights_only_parts: bool = False) -> dict[str, Any]:
    """Reads a whole checkpoint into plain containers, tensors on the CPU and numpy arrays.

    The suffix determines the format: ``.pkl`` is a pickle of numpy arrays (the model zoos of
    Detectron2 and Caffe2), ``.safetensors`` is safetensors, and anything else
    (``.pth``, ``.pt``, ``.ckpt``, ...) is a file of ``torch.save``. No code in the file is
    executed. In every format, it may contain only tensors, arrays, plain containers, and the
    classes and functions passed to ``torch.serialization.add_safe_globals``.

    Args:
        path: A file on this machine.
        weights_only_parts: Whether to read a file that asks for other classes or functions anyway,
            without the entries that are, or contain, what it would make with them. A warning names
            these entries. This reads the weights in mmdetection's training checkpoints, for
            example.

    Returns:
        The content of the file. For ``.safetensors``, the tensors are under ``"model"`` and the
        metadata, if any, under ``"metadata"``, as in the files of :func:`save_file`.

    Raises:
        CheckpointNotFoundError: There is no such file.
        CheckpointError: The file asks for code, is damaged, or is not a checkpoint.
        ImportError: The file is in safetensors format and the library is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointNotFoundError(f"There is no checkpoint at '{path}'")
    read = _READERS.get(path.suffix.lower(), _read_torch)
    with path.open("rb") as file:  # first: is it readable?
        head = file.read(512)
    _check_head(path, head)
    try:
        checkpoint = read(path)
    except (ImportError, CheckpointError):
        raise
    except Exception as error:  # of any kind: the parsers read untrusted bytes
        message = _reason(path, head, error)
        if not weights_only_parts or not _is_refusal(path, error):
            raise CheckpointError(message) from None
        checkpoint = _read_weights_only_parts(path, head)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"'{path}' contains a {type(checkpoint).__name__}, not a dict of weights: save the "
            "state_dict() of the model"
        )
    return checkpoint


def _is_refusal(path: Path, error: Exception) -> bool:
    """Returns whether a file was refused for its content, not because it is damaged."""
    is_new_pickle = _TORCH_OPCODE in str(error)  # torch's reader knows protocol 2 only
    return isinstance(error, NotPlainError) or is_new_pickle or bool(_asked_for(path, error))


def _reason(path: Path, head: bytes, error: Exception) -> str:
    """Says in one sentence why a file was not read."""
    if isinstance(error, NotPlainError):
        return (
            f"'{path}' is refused; no code in it was executed: it holds {error}; only tensors, "
            f"arrays of numbers and plain containers are read{_OTHER_WAY}"
        )
    asked_for = _asked_for(path, error)
    return _refusal(path, asked_for) if asked_for else _damage(path, head, error)


def _read_weights_only_parts(path: Path, head: bytes) -> Any:
    try:
        parts = read_plain_parts(path)
    except Exception as error:  # as above
        raise CheckpointError(_damage(path, head, error)) from None
    left_out = "; ".join(
        f"{count} x {_printable(name)} in '{_printable(key)}'" if key else _printable(name)
        for (key, name), count in parts.left_out.most_common()
    )
    if isinstance(parts.content, LeftOut):
        left_out = _printable(parts.content.name)
    if not parts.num_tensors:
        raise CheckpointError(
            f"'{path}' has no weights outside of its objects ({left_out}): save the state_dict() "
            "of the model where its class is installed"
        )
    logger.warning(f"'{path}': not read, because they are objects: {left_out}")
    return parts.content


def import_safetensors() -> ModuleType:
    """Returns the module ``safetensors.torch``; if it is missing, the error says how to install it.

    Raises:
        ImportError: safetensors is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "files in safetensors format need the library safetensors: "
            "pip install 'atss_d2[export]'"
        ) from error
    return safetensors.torch


def _read_torch(path: Path) -> Any:
    if tarfile.is_tarfile(path):
        # Before torch 2.6, weights_only=True had no effect on this format.
        raise CheckpointError(
            f"'{path}' is a tar archive: unpack what is packed into it; a checkpoint of torch 0.1 "
            "has to be loaded and saved by a newer torch"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CheckpointError(
                    f"'{path}' is a TorchScript program, not a checkpoint: save the state_dict() "
                    "of the model"
                )
            # Torch silently skips entries that the archive marks as folders.
            folders = [x.filename for x in archive.infolist() if x.external_attr & _ZIP_FOLDER]
            if folders:
                raise ValueError(f"{folders[0]} is a folder")
            damaged = archive.testzip()  # torch does not verify checksums
        if damaged is not None:
            raise ValueError(f"{damaged} does not fit its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return load_pickle(file, _admitted_globals())


def _read_safetensors(path: Path) -> dict[str, Any]:
    import_safetensors()
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        checkpoint = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
        if file.metadata():
            checkpoint["metadata"] = dict(file.metadata())
    return checkpoint


_READERS = {".pkl": _read_pickle, ".safetensors": _read_safetensors}


def _admitted_globals() -> dict[str, Any]:
    """Returns what ``torch.serialization.add_safe_globals`` has admitted, by dotted name."""
    admitted = {}
    for item in torch.serialization.get_safe_globals():
        if isinstance(item, tuple):
            admitted[item[1]] = item[0]
        else:
            admitted[f"{item.__module__}.{item.__qualname__}"] = item
    return {
        name: item for name, item in admitted.items() if name.split(".")[0] not in _NEVER_ADMITTED
    }


def _asked_for(path: Path, error: Exception) -> str | None:
    """Returns the dotted name of the global for which a file was refused, or None."""
    if isinstance(error, ForbiddenGlobalError):
        name = error.name
    else:
        match = _TORCH_REFUSAL.search(str(error))
        name = match[1] if match else ""
        if name and "." not in name:
            name = f"builtins.{name}"  # as torch abbreviates it
    # A file truncated within a name asks for the first letters of that name.
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(name) - 1))
        end = file.read()[:-1].replace(b"\n", b".")
    return None if not name.rpartition(".")[2] or end == name.encode() else name


def _refusal(path: Path, name: str) -> str:
    name = _printable(name)
    fix = (
        f"{_OTHER_WAY}, or, if you trust the file, admit it by "
        f"torch.serialization.add_safe_globals([{name}])"
    )
    module = name.split(".")[0]
    if module in _NEVER_ADMITTED:
        fix = f"; the module {module} is never admitted: get the weights from elsewhere"
    return (
        f"'{path}' is refused; no code in it was executed: it asks for {name}, which is neither a "
        f"tensor, nor an array, nor a plain container{fix}"
    )


def _printable(text: str) -> str:
    """Escapes control characters in a file's text, which would reach the user's terminal."""
    return ascii(text)[1:-1]


def _check_head(path: Path, head: bytes) -> None:
    """Recognizes what is often downloaded in place of a checkpoint."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise CheckpointError(f"'{path}' is empty: copy or download it again")
    if not head.strip(b"\0"):
        raise CheckpointError(f"'{path}' begins with zeros only: copy or download it again")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise CheckpointError(
            f"'{path}' is a web page, not a checkpoint: download the file that the page links to"
        )
    if text.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"'{path}' is a pointer of Git LFS and not the file itself: run `git lfs pull` in its "
            "repository"
        )


def _damage(path: Path, head: bytes, error: Exception) -> str:
    reason = _TORCH_REASON.search(str(error)) or re.search(r"(\S.*)", str(error))
    # The first of several sentences.
    reason = ascii(reason[1].split(". ")[0])[1:-1][:160] if reason else ""
    if not re.search("[a-z]{2}", reason):  # a KeyError for the byte where an opcode should be
        reason = f"{type(error).__name__} {reason}".rstrip()
    fix = "it is damaged, incomplete or no checkpoint: copy or download it again"
    if path.suffix.lower() in _READERS and zipfile.is_zipfile(path):
        fix = "it looks like a file of torch.save: name it .pth"
    elif path.suffix.lower() == ".safetensors" and head.startswith(b"\x80"):
        fix = "it looks like a pickle: name it .pth or .pkl"
    elif path.suffix.lower() not in _READERS and head[8:10] in (b'{"', b"{ "):
        fix = "it looks like a file of safetensors: name it .safetensors"
    return f"'{path}' cannot be read as a checkpoint ({reason}): {fix}"
