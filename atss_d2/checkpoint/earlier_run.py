"""Clears an output folder for a new run: nothing of an earlier run is deleted or mixed in."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from .run_folder import FINAL, POINTER, is_remote, numbered_checkpoints

__all__ = ["holds_a_run", "remove_leftovers", "set_aside", "set_checkpoints_aside"]

logger = logging.getLogger(__name__)

# What a run leaves in its folder, except for log.txt, which goes on.
_RECORDS = ("metrics.json", "events.out.tfevents.*", "inference*", "pictures", "learning_curve.png")
_RECORDS += ("summary.json", "nonfinite_*")
_CONFIG = "config.yaml"
# As written by `replacing`.
_LEFTOVER = re.compile(r"\.(model_\w+|last_checkpoint)\.[0-9a-f]{32}(\.pth)?")


def holds_a_run(folder: str | os.PathLike[str]) -> str:
    """Returns the name of a file that would be lost if a new run wrote into a folder.

    That is a checkpoint or the best weights; ``""`` if there is none.
    """
    numbered = [x.path.name for x in numbered_checkpoints(folder)]
    names = [FINAL, *numbered, "model_best.pth", POINTER]
    return next((x for x in names if os.path.lexists(os.path.join(folder, x))), "")


def set_aside(folder: str | os.PathLike[str]) -> Path | None:
    """Moves the files of an earlier run into a new folder ``previous_N`` inside its folder.

    These are checkpoints, metrics, events, detections and pictures, with a copy of the config.
    ``log.txt`` stays, and goes on.

    Returns:
        The new folder; None if there was nothing to move.
    """
    folder = Path(folder)
    paths = [path for pattern in ("model_*.pth", *_RECORDS) for path in folder.glob(pattern)]
    return _move(folder, [folder / POINTER, *sorted(paths)], with_config=True)


def set_checkpoints_aside(folder: str | os.PathLike[str]) -> Path | None:
    """Moves only what ``--resume`` looks at, so that it cannot find the files of another run."""
    if is_remote(folder):
        return None
    folder = Path(folder)
    paths = [x.path for x in numbered_checkpoints(folder)]
    moved = _move(folder, [folder / POINTER, folder / FINAL, *paths])
    if moved is not None:
        logger.info(f"Checkpoints of an earlier run are now in {moved}")
    return moved


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes temporary files of writers that were killed; no other run may use the folder."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if _LEFTOVER.fullmatch(name) and os.path.isfile(path):
            os.unlink(path)
            logger.info(f"Removed {path}, left by a writer that was killed")


def _move(folder: Path, paths: list[Path], *, with_config: bool = False) -> Path | None:
    paths = [path for path in paths if os.path.lexists(path)]
    if not paths:
        return None
    target = _next_folder(folder)
    target.mkdir()
    config = folder / _CONFIG
    if with_config and config.is_file():
        shutil.copy2(config, target / _CONFIG)
    for path in paths:
        os.replace(path, target / path.name)
    return target


def _next_folder(folder: Path) -> Path:
    number = 1
    while os.path.lexists(folder / f"previous_{number}"):
        number += 1
    return folder / f"previous_{number}"
