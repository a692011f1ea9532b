"""A hook that ends a training whose evaluations no longer improve."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from omegaconf import DictConfig

from ..checkpoint import SafeCheckpointer
from ..config import ConfigError
from .models import is_enabled
from .sharded_optimizer import gather_state

logger = logging.getLogger(__name__)

_MODES = ("max", "min")


class StoppedEarly(BaseException):  # Detectron2 logs an Exception as a failure
    """Ends the loop of a trainer; everything is saved."""


class EarlyStopping(HookBase):
    """Ends a training after a number of evaluations in a row without improvement.

    Past evaluations are read from ``metrics.json``, so a resumed run counts on, also with another
    patience. Call :meth:`update` on all processes after each evaluation. Must be the last hook.
    """

    def __init__(
        self,
        checkpointer: SafeCheckpointer,
        *,
        metric: str,
        patience: int,
        min_delta: float = 0.0,
        mode: str = "max",
    ) -> None:
        """
        Args:
            checkpointer: Writes ``model_final.pth``, on the first process.
            metric: Key of the results, such as ``"bbox/AP"``.
            patience: Evaluations without improvement that end the training.
            min_delta: By how much the metric must be better than the best so far.
            mode: Whether "max" or "min" is better.
        """
        self._checkpointer = checkpointer
        self._metric = metric
        self._patience = patience
        self._min_delta = min_delta
        self._sign = 1 if mode == "max" else -1
        self._seen: dict[int, float] = {}  # iteration -> metric, in this process
        self._is_over = False

    @classmethod
    def from_config(cls, cfg: DictConfig, checkpointer: SafeCheckpointer) -> EarlyStopping | None:
        """Builds the hook of ``train.early_stopping``; None if it is not enabled.

        Raises:
            ConfigError: A value is impossible, or nothing is evaluated during training.
        """
        if not is_enabled(cfg, "early_stopping"):
            return None
        options = {k: v for k, v in cfg.train.early_stopping.items() if k != "enabled"}
        if cfg.train.eval_period < 1:
            raise ConfigError(
                "train.early_stopping needs evaluations during training: set train.eval_period"
            )
        if options.get("patience", 1) < 1:
            raise ConfigError(
                f"train.early_stopping.patience must be >= 1, got {options['patience']}"
            )
        if options.get("mode", "max") not in _MODES:
            raise ConfigError(
                f'train.early_stopping.mode must be "max" or "min", got "{options["mode"]}"'
            )
        return cls(checkpointer, **options)

    def update(self, results: Mapping[str, Any]) -> None:
        """Takes the results of an evaluation, which only the first process has."""
        if comm.is_main_process():
            flat = flatten_results_dict(results)
            if self._metric in flat:
                self._seen[self.trainer.iter] = float(flat[self._metric])
            else:
                logger.warning(
                    f"train.early_stopping.metric is '{self._metric}', which is not among the "
                    f"results ({', '.join(flat)}): the training does not stop early"
                )
        self._decide()

    def before_train(self) -> None:
        path = Path(self._checkpointer.save_dir) / "metrics.json"
        if comm.is_main_process() and path.is_file():
            before = _read(path, self._metric, self.trainer.start_iter)
            self._seen = {**before, **self._seen}
        self._decide()
        if self._is_over:  # it stopped, and was resumed
            self.trainer.iter = self.trainer.start_iter - 1
            self._stop()

    def after_step(self) -> None:
        if self._is_over:
            self._stop()

    def _decide(self) -> None:
        """Finds out whether to stop; all processes agree."""
        best, num_since = -math.inf, 0
        for _, value in sorted(self._seen.items()):
            if self._sign * value > best + (self._min_delta if math.isfinite(best) else 0):
                best, num_since = self._sign * value, 0
            else:
                num_since += 1
        self._best = self._sign * best
        self._is_over = comm.all_gather(num_since >= self._patience)[0]

    def _stop(self) -> None:
        iteration = self.trainer.iter
        gather_state(self.trainer.optimizer)
        if comm.is_main_process():
            self._checkpointer.save("model_final", iteration=iteration)
            logger.info(
                f"Stopped early after iteration {iteration}: {self._metric} has not improved on "
                f"{self._best:.4g} in {self._patience} evaluations (train.early_stopping.patience);"
                " the weights are in model_final.pth"
            )
        comm.synchronize()
        raise StoppedEarly


def _read(path: Path, metric: str, end: int) -> dict[int, float]:
    """Reads a metric of all iterations before ``end``."""
    values = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            iteration = row["iteration"]
        except (ValueError, TypeError, KeyError):  # torn by a kill
            continue
        if metric in row and iteration < end:
            values[iteration] = float(row[metric])
    return values
