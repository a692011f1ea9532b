"""Writers that send metrics to Weights & Biases, MLflow or trackio, and never stop a training."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import queue
import re
import threading
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from detectron2.config import instantiate
from detectron2.utils.events import EventWriter, get_event_storage
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..config import ConfigError

logger = logging.getLogger(__name__)

_MAX_ROWS = 10000  # that wait for the network
_SECONDS_TO_CLOSE = 60


class TrackerWriter(EventWriter):
    """Detectron2's event writer for a service: it calls its library in a thread.

    So no network or server can delay or stop the training: what fails is a warning.

    Attributes:
        name: What ``train.writers`` calls it.
        package: What ``pip install`` calls its library.
    """

    name: ClassVar[str]
    package: ClassVar[str]

    def __init__(self, *, window_size: int = 20, **options: Any) -> None:
        """
        Args:
            window_size: Values are medians over so many iterations, as in Detectron2's writers.
            **options: Arguments of the library's function that starts a run.
        """
        self._window_size = window_size
        self._options = options
        self._last_write = -1
        self._rows: queue.Queue = queue.Queue(_MAX_ROWS)
        self._has_warned = False
        self._thread: threading.Thread | None = None

    def open(self, output_dir: str, config: Mapping[str, Any], *, is_resumed: bool) -> None:
        """Starts the thread.

        Args:
            output_dir: Folder of the run, which keeps the id of its run at the service.
            config: The config, flat.
            is_resumed: Whether to continue the service's run of the same folder.
        """
        self._id_file = Path(output_dir) / f"{self.name}_run_id.txt"
        if not is_resumed:
            self._id_file.unlink(missing_ok=True)
        self._output_dir = output_dir
        self._config = config
        self._thread = threading.Thread(target=self._run, daemon=True, name=self.name)
        self._thread.start()

    def write(self) -> None:
        rows: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write and math.isfinite(value):
                rows[iteration][name] = value
        for iteration, row in sorted(rows.items()):
            self._put((row, iteration))
        self._last_write = max([self._last_write, *rows])

    def close(self) -> None:
        if self._thread is None:
            return
        self._put(None)
        self._thread.join(_SECONDS_TO_CLOSE)
        if self._thread.is_alive():
            self._warn(f"is not done after {_SECONDS_TO_CLOSE} s: its last metrics may be missing")
        self._thread = None

    def _put(self, row: tuple[dict[str, float], int] | None) -> None:
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._warn(f"does not answer: of {_MAX_ROWS} rows that wait, further ones are dropped")

    def _run(self) -> None:
        try:
            run_id = self._id_file.read_text().strip() if self._id_file.is_file() else None
            run_id = self.start(run_id)
            if run_id:
                self._id_file.write_text(f"{run_id}\n")
        except BaseException as error:  # libraries also call sys.exit
            self._warn(f"does not start, and gets no metrics ({_first_line(error)})")
            while self._rows.get() is not None:
                pass
            return
        while (row := self._rows.get()) is not None:
            self._try(self.log, *row)
        self._try(self.finish)

    def _try(self, function: Any, *args: Any) -> None:
        try:
            function(*args)
        except BaseException as error:
            self._warn(f"has failed, metrics are missing there ({_first_line(error)})")

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            logger.warning(f"train.writers: {self.name} {what}; the training goes on")
        self._has_warned = True

    @abstractmethod
    def start(self, run_id: str | None) -> str | None:
        """Starts a run, or continues that of ``run_id``; returns its id."""

    @abstractmethod
    def log(self, row: dict[str, float], iteration: int) -> None:
        """Logs the scalars of an iteration."""

    @abstractmethod
    def finish(self) -> None:
        """Ends the run."""


class WandbWriter(TrackerWriter):
    """Weights & Biases; ``WANDB_MODE=offline`` keeps everything in the output folder."""

    name = package = "wandb"

    def start(self, run_id: str | None) -> str | None:
        import wandb

        options = {"project": "atss_d2", "dir": self._output_dir, **self._options}
        if run_id is not None:
            options |= {"id": run_id, "resume": "allow"}
        self._wandb_run = wandb.init(config=dict(self._config), **options)
        return self._wandb_run.id

    def log(self, row: dict[str, float], iteration: int) -> None:
        self._wandb_run.log(row, step=iteration)

    def finish(self) -> None:
        self._wandb_run.finish()


class MLflowWriter(TrackerWriter):
    """MLflow; without ``MLFLOW_TRACKING_URI``, its database is in the output folder."""

    name = package = "mlflow"

    def start(self, run_id: str | None) -> str | None:
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            database = (Path(self._output_dir) / "mlflow.db").absolute()
            mlflow.set_tracking_uri(f"sqlite:///{database}")
        self._mlflow = mlflow
        run = mlflow.start_run(run_id=run_id, **({} if run_id else self._options))
        if run_id is None:
            parameters = [(_plain_name(k), str(v)[:500]) for k, v in self._config.items()]
            for start in range(0, len(parameters), 100):  # as many as a request may have
                mlflow.log_params(dict(parameters[start : start + 100]))
        return run.info.run_id

    def log(self, row: dict[str, float], iteration: int) -> None:
        self._mlflow.log_metrics({_plain_name(k): v for k, v in row.items()}, step=iteration)

    def finish(self) -> None:
        self._mlflow.end_run()


class TrackioWriter(TrackerWriter):
    """trackio, whose database is on this machine unless ``space_id`` is given."""

    name = package = "trackio"

    def start(self, run_id: str | None) -> str | None:
        import trackio

        self._trackio = trackio
        options = {"project": "atss_d2", **self._options}
        if run_id is not None:
            options |= {"name": run_id, "resume": "allow"}
        return trackio.init(config=dict(self._config), **options).name

    def log(self, row: dict[str, float], iteration: int) -> None:
        self._trackio.log(row, step=iteration)

    def finish(self) -> None:
        self._trackio.finish()


_BY_NAME = {x.name: x for x in (WandbWriter, MLflowWriter, TrackioWriter)}


def build_writers(cfg: DictConfig) -> list[EventWriter]:
    """Builds the writers of ``train.writers``: names, or nodes of writers.

    Raises:
        ConfigError: There is no such writer, or its library is not installed.
    """
    nodes = cfg.train.get("writers") or []
    if not isinstance(nodes, (list, ListConfig)):
        nodes = [nodes]
    return [_build_writer(node) for node in nodes]


def _build_writer(node: Any) -> EventWriter:
    writer = node
    if isinstance(node, str):
        if node not in _BY_NAME:
            raise ConfigError(
                f"train.writers has '{node}': known are {', '.join(_BY_NAME)}, or give a node "
                "such as L(WandbWriter)(project=...)"
            )
        writer = _BY_NAME[node]()
    elif isinstance(node, DictConfig):
        writer = instantiate(node)
    if not isinstance(writer, EventWriter):
        raise ConfigError(f"train.writers must be names or Detectron2's EventWriters, got {node}")
    if isinstance(writer, TrackerWriter) and importlib.util.find_spec(writer.name) is None:
        raise ConfigError(
            f"train.writers has '{writer.name}', which is not installed: pip install "
            f"{writer.package}"
        )
    return writer


def open_writers(writers: Sequence[EventWriter], cfg: DictConfig, *, is_resumed: bool) -> None:
    """Starts the runs at the services; for the first process."""
    for writer in writers:
        if isinstance(writer, TrackerWriter):
            writer.open(cfg.train.output_dir, flat_config(cfg), is_resumed=is_resumed)


def flat_config(cfg: DictConfig) -> dict[str, Any]:
    """Returns the plain values of a config by dotted key; classes by their names."""
    flat: dict[str, Any] = {}

    def add(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, x in value.items():
                add(f"{key}.{name}" if key else str(name), x)
        elif isinstance(value, (list, tuple)):
            flat[key] = str(value)
        elif callable(value):
            flat[key] = f"{value.__module__}.{value.__qualname__}"
        else:
            flat[key] = value if isinstance(value, (str, int, float, type(None))) else str(value)

    add("", OmegaConf.to_container(cfg, resolve=False))
    return flat


def _plain_name(name: str) -> str:
    """Replaces characters that MLflow does not allow."""
    return re.sub(r"[^\w.\- :/]", "_", name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
