"""The runs of recipes: what each is, how far it is, and what it gave."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from tabulate import tabulate

from ablations import Run, plan_runs
from ablations.configs import row_hash
from ablations.runs import METRICS

from .recipes import Recipe, recipes

DATA = "coco"
FINAL = "model_final.pth"
HEADERS = ("recipe", "quoted val2017", "quoted test-dev", "measured val2017", "difference")
HEADERS += ("seeds", *METRICS[1:], "state")
_TASK = "bbox_TTA"


@dataclass(frozen=True)
class EvaluationRun(Run):
    """An evaluation with test-time augmentation of the weights of another run.

    Args:
        trained: That run.
    """

    trained: Run | None = None

    def is_started(self) -> bool:
        """Returns False: an evaluation that was interrupted starts again."""
        return False

    def arguments(self, *, num_gpus: int | None) -> list[str]:
        """Returns arguments for train_net.py."""
        arguments = [x for x in super().arguments(num_gpus=num_gpus) if x != "--resume"]
        weights = f"train.init_checkpoint={self.trained.folder / FINAL}"
        at = next(i for i, x in enumerate(arguments) if "=" in x)
        return [*arguments[:at], "--eval-only", *arguments[at:], weights]

    def read_metrics(self) -> dict[str, float]:
        """Returns the last evaluation with test-time augmentation that ``log.txt`` lists.

        Raises:
            ValueError: The file has no such evaluation.
            OSError: The file does not exist.
        """
        lines = (self.folder / "log.txt").read_text(errors="replace").splitlines()
        lines = [x.partition("copypaste: ")[2] for x in lines if "copypaste: " in x]
        tasks = [i for i, x in enumerate(lines) if x == f"Task: {_TASK}"]
        if not tasks or len(lines) < tasks[-1] + 3:
            raise ValueError(f"{self.folder / 'log.txt'} has no results of {_TASK}")
        names, values = (lines[tasks[-1] + i].split(",") for i in (1, 2))
        found = dict(zip(names, map(float, values), strict=True))
        return {name: found.get(name, math.nan) for name in METRICS}


def plan(
    selected: Sequence[Recipe],
    *,
    seeds: Sequence[int] = (0,),
    output: Path,
    overrides: Sequence[str] = (),
) -> list[Run]:
    """Lists the runs of recipes; an evaluation comes after the training whose weights it needs.

    Args:
        selected: See :func:`reproduction.recipes.select`.
        seeds: One run per seed.
        output: Folder of all runs.
        overrides: ``key=value`` for every run.

    Raises:
        KeyError, ValueError: See :func:`ablations.plan_runs`.
    """
    needed = {recipe.evaluates for recipe in selected} | {recipe.name for recipe in selected}
    in_order = [recipe for recipe in recipes() if recipe.name in needed]
    options = {"seeds": seeds, "output": output, "overrides": overrides}
    trained = plan_runs([r for r in in_order if not r.evaluates], DATA, **options)
    by_name = {(run.row.name, run.seed): run for run in trained}
    evaluated = [
        EvaluationRun(
            **{field.name: getattr(run, field.name) for field in fields(Run)},
            trained=by_name[run.row.evaluates, run.seed],
        )
        for run in plan_runs([r for r in in_order if r.evaluates], DATA, **options)
    ]
    return [*trained, *evaluated]


def state(run: Run) -> str:
    """Returns how far a run is, in a few words."""
    if run.is_finished():
        return "finished"
    iteration = last_iteration(run)
    if iteration is None:
        return "started" if run.is_started() else ""
    return f"at {iteration + 1} of {run.cfg.train.max_iter}"


def last_iteration(run: Run) -> int | None:
    """Returns the last iteration that a run has logged."""
    try:
        lines = (run.folder / "metrics.json").read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return min(int(json.loads(line)["iteration"]), run.cfg.train.max_iter - 1)
        except (ValueError, KeyError, TypeError):  # cut off by a kill
            continue
    return None


def collect(runs: Iterable[Run]) -> list[Run]:
    """Writes the results of runs that have ended but were not watched, as under SLURM.

    Returns:
        The runs whose results were written.
    """
    found = []
    for run in runs:
        if run.is_finished() or not _has_ended(run):
            continue
        try:
            run.write_result(seconds=None)
        except (OSError, ValueError):  # killed between the last iteration and its evaluation
            continue
        found.append(run)
    return found


def _has_ended(run: Run) -> bool:
    if isinstance(run, EvaluationRun):
        return (run.folder / "log.txt").is_file()
    iteration = last_iteration(run)
    if iteration is None or iteration < run.cfg.train.max_iter - 1:
        return False
    return (run.folder / FINAL).is_file() and _evaluated_at(run) >= run.cfg.train.max_iter - 1


def _evaluated_at(run: Run) -> int:
    """Returns the iteration of the last evaluation in ``metrics.json``; -1 without any."""
    last = -1
    for line in (run.folder / "metrics.json").read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "bbox/AP" in row:
            last = int(row["iteration"])
    return last


def table(selected: Sequence[Recipe], runs: Iterable[Run], overrides: Sequence[str] = ()) -> str:
    """Returns quoted beside measured AP in markdown: one line per recipe, means over seeds.

    Args:
        selected: The recipes; several with the same config share their runs.
        runs: See :func:`plan`.
        overrides: Those of the runs.
    """
    by_config: dict[str, list[Run]] = {}
    for run in runs:
        by_config.setdefault(run.config_hash, []).append(run)
    lines = []
    for recipe in selected:
        seeds = by_config[row_hash(recipe, DATA, tuple(overrides))]
        results = [_result(run) for run in seeds if run.is_finished()]
        mean = {
            name: sum(values) / len(values)
            for name in METRICS
            if (values := [r[name] for r in results if r[name] is not None])
        }
        difference = ""
        if "AP" in mean and recipe.quoted_ap is not None:
            difference = f"{mean['AP'] - recipe.quoted_ap:+.1f}"
        lines.append(
            (
                recipe.name,
                _number(recipe.quoted_ap),
                _number(recipe.quoted_test_dev),
                _number(mean.get("AP")),
                difference,
                str(len(results) or ""),
                *(_number(mean.get(name)) for name in METRICS[1:]),
                ", ".join(dict.fromkeys(filter(None, map(state, seeds)))) or "not started",
            )
        )
    return tabulate(lines, HEADERS, tablefmt="github", disable_numparse=True)


def _result(run: Run) -> dict[str, float | None]:
    return json.loads((run.folder / "results.json").read_text())["metrics"]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
