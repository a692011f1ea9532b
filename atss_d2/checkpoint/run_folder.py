"""Finds the checkpoint of an output folder that training resumes from."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .finite import nonfinite_tensors
from .loading import CheckpointError, load_file

__all__ = [
    "FINAL",
    "POINTER",
    "Checkpoint",
    "find_checkpoint",
    "has_checkpoints",
    "is_remote",
    "newest_checkpoint",
    "numbered_checkpoints",
    "numbered_name",
    "training_problem",
]

logger = logging.getLogger(__name__)

# Detectron2's names. The pointer names the file that was saved last.
POINTER = "last_checkpoint"
FINAL = "model_final.pth"
_NUMBERED = re.compile(r"model_(\d{7,})\.pth")


class Checkpoint(NamedTuple):
    """A checkpoint to resume from: its file, and the last iteration that was finished."""

    path: Path
    iteration: int


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a path is for a handler of Detectron2's ``PathManager``, not a folder."""
    return "://" in str(folder)


def numbered_name(iteration: int) -> str:
    """Returns the name of the file that is saved after an iteration."""
    return f"model_{iteration:07d}.pth"


def numbered_checkpoints(folder: str | os.PathLike[str]) -> list[Checkpoint]:
    """Returns the files ``model_0000999.pth`` of a folder, the newest iteration first.

    Iterations are those in the names; the files are not read.
    """
    found = []
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        match = _NUMBERED.fullmatch(name)
        if match and os.path.isfile(os.path.join(folder, name)):
            found.append(Checkpoint(Path(folder, name), int(match[1])))
    return sorted(found, key=lambda checkpoint: checkpoint.iteration, reverse=True)


def has_checkpoints(folder: str | os.PathLike[str]) -> bool:
    """Returns whether a run has saved anything in a folder, whole or not."""
    names = (FINAL, POINTER)
    return any(os.path.lexists(os.path.join(folder, x)) for x in names) or bool(
        numbered_checkpoints(folder)
    )


def find_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Returns the path of :func:`newest_checkpoint`, or None."""
    found = newest_checkpoint(folder)
    return None if found is None else found.path


def newest_checkpoint(
    folder: str | os.PathLike[str], *, with_trainer: bool = True
) -> Checkpoint | None:
    """Finds the newest checkpoint that loads whole.

    Whole means: every checksum of the file is right, and it holds finite weights and the state of
    a training. Candidates are the files ``model_0000999.pth``, ``model_final.pth`` and the one that
    ``last_checkpoint`` names; each that is newer but not whole causes a warning that names it, the
    reason, and the file taken instead.

    Args:
        folder: The output folder of a run.
        with_trainer: Whether the state of a training is needed, or weights suffice.

    Returns:
        The checkpoint; None if no run has saved one in the folder.

    Raises:
        CheckpointError: There are candidates but none is whole, or the file that
            ``last_checkpoint`` names is lost and there is no other.
    """
    named, pointer_problem = _read_pointer(Path(folder))
    numbered = numbered_checkpoints(folder)
    others = [Path(folder, FINAL), *([named] if named else ())]
    # Only these have to be read to know their iteration.
    others = [
        x for x in dict.fromkeys(others) if x.is_file() and x not in [n.path for n in numbered]
    ]
    problems: list[str] = []
    whole = [x for path in others if (x := _read(path, problems, with_trainer)) is not None]
    # Of the same iteration, the final one is taken.
    for known in sorted([*whole, *numbered], key=lambda x: x.iteration, reverse=True):
        found = known if known in whole else _read(known.path, problems, with_trainer)
        if found is not None:
            _warn(folder, found, named, problems, pointer_problem)
            return found
    if pointer_problem:
        problems.insert(0, pointer_problem)
    if problems:
        raise CheckpointError(
            f"training cannot be resumed from '{folder}', as no checkpoint in it is whole: "
            f"{'; '.join(problems)}. Put a copy of one there, or start from the beginning, by "
            "--overwrite instead of --resume"
        )
    _tell_of_weights(Path(folder))
    return None


def training_problem(content: Mapping[str, Any], *, check_numbers: bool = True) -> str:
    """Says why training cannot resume from the content of a checkpoint; ``""`` if it can.

    Args:
        content: What the file holds.
        check_numbers: Whether to look for NaN and infinities.
    """
    trainer = content.get("trainer")
    if not isinstance(content.get("model"), Mapping) or not isinstance(trainer, Mapping):
        return (
            "holds weights, but not the state of a training; to begin with these weights, move it "
            "out of the folder and give it as train.init_checkpoint or MODEL.WEIGHTS"
        )
    # Detectron2's trainer of yaml configs has another inside.
    inner = trainer.get("_trainer", trainer)
    if not isinstance(trainer.get("iteration"), int) or not isinstance(inner, Mapping):
        return "does not say its iteration"
    if not isinstance(inner.get("optimizer"), Mapping):
        return "lacks the state of the optimizer"
    names = nonfinite_tensors(content) if check_numbers else []
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f"has NaN or infinity in {', '.join(names[:3])}{more}"
    return ""


def _read(path: Path, problems: list[str], with_trainer: bool) -> Checkpoint | None:
    """Reads a file; if it is not whole, appends a sentence to ``problems`` and returns None."""
    try:
        content = load_file(path)
    except (OSError, CheckpointError) as error:
        problems.append(str(error) if str(path) in str(error) else f"'{path}': {error}")
        return None
    if not with_trainer:
        match = _NUMBERED.fullmatch(path.name)
        iteration = int(match[1]) if match else content.get("iteration", -1)
        return Checkpoint(path, iteration if isinstance(iteration, int) else -1)
    problem = training_problem(content)
    if problem:
        problems.append(f"'{path}' {problem}")
        return None
    return Checkpoint(path, content["trainer"]["iteration"])


def _read_pointer(folder: Path) -> tuple[Path | None, str]:
    """Returns the file that ``last_checkpoint`` names, and a sentence if that is not a file."""
    pointer = folder / POINTER
    if pointer.is_dir():
        return None, f"'{pointer}' is a folder"
    try:
        name = pointer.read_bytes().decode().strip()
    except FileNotFoundError:
        return None, ""
    except UnicodeDecodeError:
        return None, f"'{pointer}' holds no name of a file"
    except OSError as error:
        return None, f"'{pointer}' cannot be read ({error.strerror})"
    if not name:
        return None, f"'{pointer}' is empty"
    if not name.isprintable() or not os.path.isfile(folder / name):
        return None, f"'{pointer}' names {name[:80]!a}, which is not there"
    return folder / name, ""


def _warn(
    folder: str | os.PathLike[str],
    found: Checkpoint,
    named: Path | None,
    problems: list[str],
    pointer_problem: str,
) -> None:
    for problem in problems:
        logger.warning(f"{problem}. Taking '{found.path}' instead, of iteration {found.iteration}")
    if pointer_problem:
        logger.warning(f"{pointer_problem}: taking '{found.path}', the newest whole checkpoint")
    if named is not None and not problems:
        match = _NUMBERED.fullmatch(named.name)
        if match and int(match[1]) < found.iteration:
            logger.warning(
                f"'{Path(folder, POINTER)}' names '{named.name}', but '{found.path}' is newer and "
                "is taken; to go back, move the newer files away"
            )


def _tell_of_weights(folder: Path) -> None:
    """Names files that might be taken for checkpoints of a run."""
    names = sorted(path.name for path in folder.glob("*.pth")) if folder.is_dir() else []
    if names:
        logger.warning(
            f"'{folder}' has no checkpoint of a run, only {', '.join(names[:3])}; to begin with "
            "these weights give train.init_checkpoint or MODEL.WEIGHTS"
        )
