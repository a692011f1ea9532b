"""Turns the name of a checkpoint into a file on this machine."""

from __future__ import annotations

import os
from http.client import HTTPException
from urllib.error import URLError

from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.utils.file_io import Detectron2Handler, PathManager

from .conventions import CONVENTIONS
from .loading import CheckpointError, CheckpointNotFoundError

__all__ = ["HOW_TO_NAME", "check_checkpoint", "local_checkpoint", "split_convention"]

HOW_TO_NAME = "train.init_checkpoint=FILE, or MODEL.WEIGHTS FILE in a yaml config"
# Prefixes of the checkpoints that our configs start training from, which contain only backbones.
_BACKBONES = ("atss_d2://pretrained/", Detectron2Handler.PREFIX + "ImageNetPretrained/")


def split_convention(path: str) -> tuple[str | None, str]:
    """Splits ``authors://file.pth`` into convention and file; other paths have no convention."""
    convention, separator, file = path.partition("://")
    return (convention, file) if separator and convention in CONVENTIONS else (None, path)


def check_checkpoint(path: str, *, for_use: bool = False) -> None:
    """Checks that a checkpoint exists, and downloads it if it is a URL.

    Args:
        path: As for :class:`SafeCheckpointer`; ``""`` stands for none.
        for_use: Whether a trained detector is needed, which a config's initial backbone is not.

    Raises:
        CheckpointNotFoundError: The file does not exist or cannot be downloaded; the message names
            it, and the keys that select another one.
        CheckpointError: ``for_use`` is set, and the path is empty or names a backbone.
    """
    if for_use and not path:
        raise CheckpointError(
            "no checkpoint is named, and a model with random weights detects nothing: give "
            f"{HOW_TO_NAME}"
        )
    if for_use and path.startswith(_BACKBONES):
        raise CheckpointError(
            f"'{path}' is a backbone to start training with, not a trained detector: give "
            f"{HOW_TO_NAME}"
        )
    if path:
        local_checkpoint(path)


def local_checkpoint(path: str) -> str:
    """Returns the path of a checkpoint on this machine, after downloading it if it is a URL.

    Raises:
        CheckpointNotFoundError: As for :func:`check_checkpoint`.
    """
    _, file = split_convention(path)
    file = file.partition("?")[0]  # Detectron2 takes its own options after a "?"
    try:
        local = PathManager.get_local_path(file) if file else ""
    except FileNotFoundError as error:  # from the handler of a prefix, which may say more
        raise CheckpointNotFoundError(str(error)) from None
    except (OSError, HTTPException, ValueError, RuntimeError, AssertionError) as error:
        url = _url(file)
        name = f"'{file}'" if url == file else f"'{file}' ({url})"
        is_wrapped = type(error) is URLError
        reason = " ".join(str(error.reason if is_wrapped else error).split())
        raise CheckpointNotFoundError(
            f"{name} cannot be downloaded ({reason or type(error).__name__}): download it "
            f"elsewhere, copy it to this machine and give {HOW_TO_NAME}"
        ) from None
    if not os.path.isfile(local):
        raise CheckpointNotFoundError(f"There is no checkpoint at '{file}': give {HOW_TO_NAME}")
    return local


def _url(file: str) -> str:
    """Returns the URL that Detectron2 downloads for a path."""
    prefix, separator, name = file.partition("://")
    if separator and prefix == "catalog":
        try:
            return ModelCatalog.get(name)
        except RuntimeError:  # an unknown model
            return file
    if file.startswith(Detectron2Handler.PREFIX):
        return Detectron2Handler.S3_DETECTRON2_PREFIX + name
    return file
