"""The runs of the study: their list, their folders and their results."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.config import LazyConfig
from omegaconf import DictConfig

from atss_d2.checkpoint.run_folder import has_checkpoints
from atss_d2.plain.files import replacing
from atss_d2.visualization import read_metrics

from .configs import load_row_config, row_hash
from .rows import Row

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_RESULTS = "results.json"


@dataclass(frozen=True)
class Run:
    """One training run: the config of a row, on a data set, with a seed.

    Args:
        row: The first of the selected rows that have this config.
        data: See :data:`ablations.DATA`.
        seed: ``train.seed``.
        cfg: The whole config, seed and output folder included.
        config_hash: See :func:`ablations.configs.config_hash`.
        overrides: The overrides that ``cfg`` already includes.
    """

    row: Row
    data: str
    seed: int
    cfg: DictConfig
    config_hash: str
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of all files of this run."""
        return Path(self.cfg.train.output_dir)

    @property
    def name(self) -> str:
        """Row and seed, for messages."""
        return f"{self.row.name} seed {self.seed}"

    def is_started(self) -> bool:
        """Returns whether there is a checkpoint to continue from."""
        return has_checkpoints(self.folder)

    def is_finished(self) -> bool:
        """Returns whether there are results of exactly this config and seed."""
        result = _read_result(self.folder / _RESULTS)
        return result is not None and (result.config, result.seed) == (self.config_hash, self.seed)

    def arguments(self, *, num_gpus: int | None) -> list[str]:
        """Returns arguments for train_net.py; a second start resumes an interrupted run.

        With ``num_gpus`` None, another program starts the processes. On COCO the row's own config
        runs with overrides. A config that was adapted to other data is not in ``configs/``: it is
        the file that :meth:`prepare` writes.
        """
        if self.data != "coco":
            return ["--config-file", str(self.folder / "run.yaml"), "--resume"]
        return [
            *("--config-file", f"configs/{self.row.config}.py"),
            *([] if num_gpus is None else ["--num-gpus", str(num_gpus)]),
            *("--resume", f"train.output_dir={self.folder}", f"train.seed={self.seed}"),
            *self.overrides,
        ]

    def prepare(self) -> None:
        """Creates the folder, with the config in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        LazyConfig.save(self.cfg, str(self.folder / "run.yaml"))

    def read_metrics(self) -> dict[str, float]:
        """Returns the last evaluation in ``metrics.json``: name in :data:`METRICS` -> percent.

        Raises:
            ValueError: The file has no evaluation.
            OSError: The file does not exist.
        """
        rows = read_metrics(self.folder / "metrics.json")
        evaluations = [row for row in rows.values() if "bbox/AP" in row]
        if not evaluations:
            raise ValueError(f"{self.folder / 'metrics.json'} holds no bbox/AP")
        return {name: evaluations[-1].get(f"bbox/{name}", math.nan) for name in METRICS}

    def write_result(self, *, seconds: float | None) -> Result:
        """Saves the last evaluation as ``results.json``.

        Args:
            seconds: Wall-clock time of the run; None if it is unknown because the run was
                interrupted.

        Raises:
            ValueError, OSError: As for :meth:`read_metrics`.
        """
        found = self.read_metrics()
        values = [found.get(name, math.nan) for name in METRICS]
        if math.isnan(values[0]):  # not a single detection
            values = [0.0] * len(METRICS)
        result = Result(
            row=self.row.name,
            data=self.data,
            seed=self.seed,
            config=self.config_hash,
            overrides=list(self.overrides),
            iterations=self.cfg.train.max_iter,
            seconds=None if seconds is None else round(seconds, 1),
            # null if the data set has no object of that size.
            metrics={
                name: None if math.isnan(value) else round(value, 3)
                for name, value in zip(METRICS, values, strict=True)
            },
        )
        with replacing(self.folder / _RESULTS) as temporary:
            temporary.write_text(json.dumps(asdict(result), indent=1) + "\n")
        return result


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Args:
        row: Name of the row that the run was made for; rows with equal configs share it.
        data: Data set of the study.
        seed: Seed.
        config: ``config_hash`` of its :class:`Run`.
        overrides: Overrides from the command line.
        iterations: Length of the training.
        seconds: Wall-clock time, including loading and evaluation; None for a run that was
            interrupted and resumed.
        metrics: Name in :data:`METRICS` -> percent; None if the data has no such objects.
    """

    row: str
    data: str
    seed: int
    config: str
    overrides: list[str]
    iterations: int
    seconds: float | None
    metrics: dict[str, float | None]

    def folder(self, output: str | os.PathLike) -> Path:
        """Returns the folder of the run, in that of the study."""
        (folder,) = Path(output, self.data).glob(f"*_{self.config}/seed{self.seed}")
        return folder


def plan_runs(
    rows: Sequence[Row],
    data: str,
    *,
    seeds: Sequence[int],
    output: str | os.PathLike,
    overrides: Sequence[str] = (),
) -> list[Run]:
    """Lists the runs that give the numbers of the rows; rows with equal configs share runs.

    Args:
        rows: See :func:`select_rows`.
        data: See :data:`ablations.DATA`.
        seeds: One run per seed.
        output: The folder of the study; a run is in ``<data>/<row>_<config hash>/seed<seed>``
            below it, named after the row that it was first made for.
        overrides: ``key=value`` for every run.

    Raises:
        KeyError: An override names a key that a row does not have.
        ValueError: An override cannot be applied.
    """
    root = Path(output, data)
    folders: dict[str, Path] = {}
    runs = []
    for row in rows:
        digest = row_hash(row, data, tuple(overrides))
        if digest in folders:
            continue
        earlier = sorted(root.glob(f"*_{digest}"))
        folders[digest] = earlier[0] if earlier else root / f"{row.name.replace('/', '_')}_{digest}"
        for seed in seeds:
            cfg = load_row_config(row, data, overrides)
            cfg.train.update(output_dir=str(folders[digest] / f"seed{seed}"), seed=seed)
            runs.append(Run(row, data, seed, cfg, digest, tuple(overrides)))
    # Seed by seed, so that an interrupted study has all rows once rather than a few rows often.
    return sorted(runs, key=lambda run: list(seeds).index(run.seed))


def read_results(output: str | os.PathLike, data: str) -> Iterator[Result]:
    """Yields the results of all finished runs on a data set."""
    for path in sorted(Path(output, data).glob(f"*/*/{_RESULTS}")):
        result = _read_result(path)
        if result is not None:
            yield result


def _read_result(path: Path) -> Result | None:
    """Reads a result; returns None if there is none, or not one of ours."""
    try:
        return Result(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
