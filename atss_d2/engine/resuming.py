"""Where a training starts: at the beginning, after a checkpoint, or nowhere, as it is finished."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.engine.train_loop import TrainerBase
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import PathManager

from ..checkpoint import CheckpointError, load_file
from ..checkpoint.earlier_run import set_checkpoints_aside
from ..checkpoint.run_folder import (
    FINAL,
    POINTER,
    Checkpoint,
    is_remote,
    newest_checkpoint,
    numbered_name,
)
from ..checkpoint.saving import write_atomically
from ..config import View
from .main_process import decided_by_main
from .same_start import bring_to_main

__all__ = ["Start", "choose_checkpoint", "find_start", "finish", "same_optimizer"]

logger = logging.getLogger(__name__)


class Start(NamedTuple):
    """Where a training starts.

    Attributes:
        checkpoint: What to resume from; None to begin at iteration 0.
        results: The results of the last evaluation, if the run is finished and was evaluated:
            there is nothing left to do.
    """

    checkpoint: Checkpoint | None = None
    results: dict[str, Any] | None = None

    @property
    def iteration(self) -> int:
        """The first iteration to train."""
        return 0 if self.checkpoint is None else self.checkpoint.iteration + 1


def choose_checkpoint(output_dir: str | os.PathLike[str]) -> Checkpoint | None:
    """Returns the newest whole checkpoint of a folder, as the first process finds it.

    Raises:
        CheckpointError: See :func:`newest_checkpoint`; in the first process only, others exit.
    """
    return decided_by_main(lambda: newest_checkpoint(output_dir))


def find_start(view: View, *, resume: bool) -> Start:
    """Decides where a training starts, and puts the files of the output folder in order.

    A finished run whose ``model_final.pth`` is missing or damaged gets it. A finished run that is
    to be prolonged keeps its last checkpoint, under the name of its iteration. Without ``resume``,
    checkpoints of an earlier run are moved to a subfolder, so that they are not resumed from later.

    Args:
        view: The config.
        resume: Whether to continue the run in the output folder.

    Raises:
        CheckpointError: See :func:`newest_checkpoint`; in the first process only, others exit.
    """
    if is_remote(view.output_dir):
        return Start(_remote_checkpoint(view.output_dir) if resume else None)
    if resume:
        bring_to_main(view.output_dir)
    return decided_by_main(lambda: _find_start(view, resume=resume))


def _remote_checkpoint(folder: str) -> Checkpoint | None:
    """Returns what ``last_checkpoint`` names in a folder of one of ``PathManager``'s handlers."""
    pointer = os.path.join(folder, POINTER)
    if not PathManager.exists(pointer):
        return None
    with PathManager.open(pointer) as file:
        path = PathManager.get_local_path(os.path.join(folder, file.read().strip()))
    return Checkpoint(Path(path), load_file(path)["iteration"])


def _find_start(view: View, *, resume: bool) -> Start:
    folder = Path(view.output_dir)
    if not resume:
        set_checkpoints_aside(folder)
        return Start()
    found = newest_checkpoint(folder)
    if found is None:
        logger.info(f"There is no checkpoint in '{folder}': training starts from scratch")
        return Start()
    max_iter = view.get(view.max_iter_key)
    if found.iteration + 1 < max_iter:
        if found.path.name == FINAL:
            _keep_final(found)
        return Start(found)
    if found.path.name != FINAL:
        _copy(found.path, folder / FINAL)
        write_atomically(folder / POINTER, FINAL.encode())
        logger.info(f"Wrote '{folder / FINAL}', which the run had not finished")
    # Of several test sets, the results have one more level.
    num_sets = len(view.dataset_names("test")) if view.results_by_dataset else 1
    results = {} if view.evaluation_lacks else _read_results(folder, found.iteration + 1, num_sets)
    if results is not None:
        logger.info(
            f"The run in '{folder}' is finished: {found.iteration + 1} iterations are done, "
            f"{view.max_iter_key} is {max_iter}. Raise it to train longer, or start again by "
            "--overwrite instead of --resume"
        )
    return Start(Checkpoint(folder / FINAL, found.iteration), results)


def _keep_final(found: Checkpoint) -> None:
    """Copies the last checkpoint of a finished run, as a longer one will replace it."""
    kept = found.path.with_name(numbered_name(found.iteration))
    if not kept.exists():
        _copy(found.path, kept)
        logger.info(f"Training goes on after the end of the run; '{kept}' keeps its weights")


def _copy(source: Path, target: Path) -> None:
    write_atomically(target, source.read_bytes())


def _read_results(folder: Path, iteration: int, num_sets: int) -> dict[str, Any] | None:
    """Reads what the evaluation after the last iteration has written into ``metrics.json``."""
    flat: dict[str, float] = {}
    try:
        lines = (folder / "metrics.json").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            scalars = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        if isinstance(scalars, dict) and scalars.get("iteration") == iteration:
            flat |= {k: v for k, v in scalars.items() if "/" in k and not k.startswith("atss/")}
    if not flat:
        return None
    results: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, name = key.split("/", 1 if num_sets == 1 else 2)
        node = results
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return results


@contextmanager
def same_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Checks that what is loaded within the block is the state of the same kind of optimizer.

    Raises:
        CheckpointError: The state is of another kind; torch would fail in the first step.
    """
    kind = _kind(optimizer)
    yield
    if _kind(optimizer) != kind:
        raise CheckpointError(
            f"training cannot go on with {type(optimizer).__name__}, as the checkpoint has the "
            "state of another kind of optimizer: take that one, or begin with the weights, by "
            "train.init_checkpoint or MODEL.WEIGHTS and another output folder"
        )


def _kind(optimizer: torch.optim.Optimizer) -> set[str]:
    return {"momentum", "betas", "alpha"} & optimizer.param_groups[0].keys()


def finish(trainer: TrainerBase, max_iter: int) -> None:
    """Does what follows the last iteration of a training: the evaluation, which a kill prevented.

    Detectron2's ``train`` would count one iteration more.
    """
    logger.info(f"All {max_iter} iterations are done; the evaluation after the last one is not")
    trainer.iter = trainer.start_iter = trainer.max_iter = max_iter
    with EventStorage(max_iter) as trainer.storage:
        trainer.before_train()
        trainer.after_train()
