"""The canary: trains the first iterations of a recipe and stops at the first broken bound.

The recipe runs through train_net.py with its own schedule, and ends before the run does; its
``metrics.json`` is read while it grows.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.config import instantiate
from omegaconf import DictConfig

from atss_d2.commands.errors import one_sentence
from atss_d2.config import apply_overrides, load_config
from atss_d2.data import DataError
from atss_d2.engine.data_check import explained

from . import bounds as limits
from .set_up import findings, look_at

_POLL_SECONDS = 0.2
_END_SECONDS = 60.0  # for the processes to end after SIGTERM
_NO_NORM = 1e9  # nothing is clipped, but the norm is logged
_MOST_DATA_TIME = 0.5  # of an iteration
_LR_TOLERANCE = 1e-4
_MOST_WAITING = 5  # rows without a number of positives: another model than ATSS
_SHOWN = ("total_loss", *limits.LOSSES, limits.GRADIENT, limits.POSITIVES, "lr")


@dataclass
class Verdict:
    """What the canary saw.

    Args:
        folder: Output folder of the training; None if nothing was trained.
        complaints: What is wrong, each in one sentence; empty if all is well.
        notes: What should be known but is not wrong.
        rows: Rows of ``metrics.json``.
        seconds: Wall-clock time.
    """

    folder: Path | None = None
    complaints: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def sing(
    config: str,
    overrides: Sequence[str],
    folder: Path,
    *,
    train_net: Path,
    starter: Sequence[str] = (sys.executable,),
    iterations: int = 500,
    bounds: str | None = None,
    seed: int = 0,
    keep_going: bool = False,
    say: Callable[[str], None] = print,
) -> Verdict:
    """Checks a set-up, then trains its first iterations.

    Args:
        config: Name or file of a LazyConfig.
        overrides: ``key=value``, as for the training.
        folder: A new folder below this one gets the output.
        train_net: The script of the training.
        starter: Command that runs it, see :func:`ablations.execute`.
        iterations: How many are trained.
        bounds: Recipe whose measured bounds hold. Default: ``config``.
        seed: ``train.seed``.
        keep_going: Also train after a finding of the set-up.
        say: Takes lines of progress.

    Raises:
        ValueError: The config is yaml, or shorter than ``iterations``.
    """
    cfg = copy.deepcopy(load_config(config))
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"the canary runs LazyConfigs (.py), and {config} is yaml")
    cfg = apply_overrides(cfg, overrides)
    if iterations > cfg.train.max_iter:
        raise ValueError(f"{config} has {cfg.train.max_iter} iterations, fewer than {iterations}")
    start = time.monotonic()
    verdict = Verdict()
    facts = None
    try:
        with explained(cfg, "train"):
            facts = look_at(cfg)
        say(
            f"{sum(facts.class_counts)} boxes of {len(facts.class_counts)} classes; pixels: mean "
            f"{facts.pixel_mean:.2f}, deviation {facts.pixel_std:.2f}"
        )
        found = list(findings(cfg, facts, config))
    except DataError as error:  # the training would say the same, minutes later on COCO
        found = [one_sentence(error)]
    for finding in found:
        verdict.complaints.append(f"set-up: {finding}")
        say(f"CANARY: {verdict.complaints[-1]}")
    if facts is not None and (keep_going or not found):
        watched = _Watch(cfg, facts.image_size, iterations, limits.measured(bounds or config))
        verdict.folder = _new_folder(folder / Path(config).stem)
        command = [*starter, str(train_net), *_arguments(config, cfg, overrides, verdict, seed)]
        _train(command, verdict, watched, iterations, say)
        verdict.notes += _notes(verdict.rows)
        for checkpoint in verdict.folder.glob("*.pth"):
            checkpoint.unlink()
    verdict.seconds = time.monotonic() - start
    return verdict


def _arguments(
    config: str, cfg: DictConfig, overrides: Sequence[str], verdict: Verdict, seed: int
) -> list[str]:
    added = [
        f"train.output_dir={verdict.folder}",
        f"train.seed={seed}",
        "train.log_period=1",
        "train.eval_period=0",
        f"train.checkpointer.period={cfg.train.max_iter + 1}",
    ]
    if not cfg.train.clip_gradients.enabled:  # then the norm of the gradient is not logged
        added += ["train.clip_gradients.enabled=True", f"train.clip_gradients.max_norm={_NO_NORM}"]
    return ["--config-file", config, *overrides, *added]


class _Watch:
    """Holds the rows of a run against all bounds; those that need the first row come with it."""

    def __init__(
        self,
        cfg: DictConfig,
        image_size: tuple[int, int],
        iterations: int,
        measured: list[limits.Bound],
    ) -> None:
        self._cfg, self._iterations = cfg, iterations
        self._multiplier = instantiate(cfg.lr_multiplier)
        self._logits = _num_logits(cfg, image_size)
        self._measured = measured
        self._bounds: list[limits.Bound] = []
        self._waiting: list[dict[str, float]] = []

    def complaints(self, row: dict[str, float]) -> Iterator[str]:
        """Yields what is wrong with a row, and with earlier ones that had to wait."""
        if not self._bounds:
            self._waiting.append(row)
            # From a GPU, the number of positives comes one iteration later.
            if limits.POSITIVES not in row and len(self._waiting) < _MOST_WAITING:
                return
            first = {**row, **self._waiting[0]}
            self._bounds = self._measured + limits.derived(
                self._cfg, first, logits=self._logits, iterations=self._iterations
            )
        rows, self._waiting = self._waiting or [row], []
        for x in rows:
            yield from filter(None, (bound.broken_by(x) for bound in self._bounds))
            yield from self._learning_rate(x)

    def _learning_rate(self, row: dict[str, float]) -> Iterator[str]:
        share = row["iteration"] / self._cfg.train.max_iter
        planned = self._cfg.optimizer.lr * self._multiplier(share)
        if "lr" in row and abs(row["lr"] - planned) > _LR_TOLERANCE * planned:
            yield (
                f"iteration {row['iteration']}: the learning rate is {row['lr']:.4g}, not "
                f"{planned:.4g} as the schedule says"
            )


def _num_logits(cfg: DictConfig, image_size: tuple[int, int]) -> int:
    """Returns R K of an image."""
    generator = cfg.model.anchor_generator
    cells = sum(
        -(-image_size[0] // stride) * -(-image_size[1] // stride) for stride in generator.strides
    )
    per_cell = len(generator.sizes[0]) * len(generator.get("aspect_ratios", [1.0]))
    return cells * per_cell * cfg.model.num_classes


def _train(
    command: Sequence[str],
    verdict: Verdict,
    watch: _Watch,
    iterations: int,
    say: Callable[[str], None],
) -> None:
    console = verdict.folder / "console.log"
    environ = {"OMP_NUM_THREADS": "1"} | os.environ
    with console.open("w") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
    try:
        for row in _rows(verdict.folder / "metrics.json", process):
            verdict.rows.append(row)
            if row["iteration"] % max(iterations // 10, 1) == 0:
                say(_line(row))
            broken = list(watch.complaints(row))
            for complaint in broken:
                say(f"CANARY: {complaint}")
            verdict.complaints += broken
            if row["iteration"] >= iterations - 1 or broken:
                return
    finally:
        code = process.poll()
        _end(process)
    lines = [x for x in console.read_text(errors="replace").splitlines() if x.strip()]
    reason = lines[-1].strip() if lines else "it printed nothing"
    verdict.complaints.append(
        f"the training ended after {len(verdict.rows)} iterations (exit code {code}): {reason} "
        f"(all of it: {console})"
    )
    say(f"CANARY: {verdict.complaints[-1]}")


def _rows(path: Path, process: subprocess.Popen) -> Iterator[dict[str, float]]:
    """Yields the training rows of ``metrics.json`` as they are written, until the process ends."""
    position, is_over = 0, False
    while not is_over:
        is_over = process.poll() is not None  # then everything has been written
        if path.is_file():
            with path.open() as file:
                file.seek(position)
                for line in iter(file.readline, ""):
                    if not line.endswith("\n"):
                        break
                    position += len(line)
                    row = json.loads(line)
                    if "total_loss" in row:
                        yield row
        if not is_over:
            time.sleep(_POLL_SECONDS)


def _end(process: subprocess.Popen) -> None:
    """Ends the training and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _notes(rows: Sequence[dict[str, float]]) -> Iterator[str]:
    timed = [row for row in rows[len(rows) // 4 :] if row.get("time")]
    if not timed:
        return
    share = sum(row["data_time"] for row in timed) / sum(row["time"] for row in timed)
    yield f"{timed[-1]['time']:.3g} s an iteration, {100 * share:.0f} % of it waits for data"
    if share > _MOST_DATA_TIME:
        yield "most of the time is spent waiting for images: raise dataloader.train.num_workers"


def _line(row: dict[str, float]) -> str:
    values = (f"{name.removeprefix('atss/')} {row[name]:.4g}" for name in _SHOWN if name in row)
    return f"iteration {row['iteration']}: {', '.join(values)}"


def _new_folder(path: Path) -> Path:
    """Makes the folder ``path/1``, or the next number that is free."""
    for number in range(1, 10**6):
        folder = path / str(number)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"{path} is full")
