"""Hooks that time the evaluations during training and keep the best weights so far."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..checkpoint import SafeCheckpointer, load_file

logger = logging.getLogger(__name__)

BEST = "model_best"
# COCOEvaluator's file with the detections of the last evaluation, and our copy of the best ones.
DETECTIONS = "inference/coco_instances_results.json"
BEST_DETECTIONS = "inference/coco_instances_results_best.json"


class TimedEvalHook(hooks.EvalHook):
    """Detectron2's ``EvalHook`` that measures how long evaluations take.

    Attributes:
        expected_seconds: Expected duration of an evaluation, used until one was measured.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], dict]) -> None:
        """
        Args:
            eval_period: Iterations between evaluations; with 0, only one after the last iteration.
            eval_function: Evaluates the model.
        """
        super().__init__(eval_period, eval_function)
        self.expected_seconds = 0.0
        self._seconds: list[float] = []

    def _do_eval(self) -> None:
        start = time.perf_counter()
        super()._do_eval()
        self._seconds.append(time.perf_counter() - start)

    def seconds(self, finished: int) -> tuple[float, float]:
        """Returns the seconds of past and remaining evaluations in this process.

        Args:
            finished: Number of finished iterations; an evaluation due after the last of them counts
                as past.
        """
        past = sum(self._seconds)
        mean = past / len(self._seconds) if self._seconds else self.expected_seconds
        max_iter = self.trainer.max_iter
        num_to_come = 1  # after the last iteration
        if self._period > 0:
            num_to_come += (max_iter - 1) // self._period
            num_to_come -= min(finished, max_iter - 1) // self._period
        return past, mean * num_to_come


class BestCheckpoint(HookBase):
    """Keeps the weights of the best evaluation as ``model_best.pth``.

    Unlike Detectron2's ``BestCheckpointer``, it saves the metric in the file, so that a resumed run
    does not start from scratch, and it does not change ``last_checkpoint``, which names the file
    that training resumes from. Call :meth:`update` after each evaluation.

    Attributes:
        categories: The model's categories, saved in the file.
        best: The best metric, as saved in the file; None before the first evaluation, minus
            infinity if it was NaN.
        iteration: The iteration of the best evaluation.
        results: All results of the best evaluation, flat: ``{"bbox/AP": ...}``.
    """

    def __init__(
        self,
        model: nn.Module,
        output_dir: str,
        *,
        metric: str,
        is_resumed: bool,
    ) -> None:
        """
        Args:
            model: The evaluated model.
            output_dir: Folder of the checkpoints.
            metric: Key of the results, such as ``"bbox/AP"``; larger is better.
            is_resumed: Whether a ``model_best.pth`` in the folder belongs to this run.
        """
        self._checkpointer = _WithoutTag(model, output_dir)
        self.categories: list[dict[str, Any]] = []
        self._metric = metric
        self._is_resumed = is_resumed
        self.path = Path(output_dir) / f"{BEST}.pth"
        self.best: float | None = None
        self.iteration: int | None = None
        self.results: dict[str, float] = {}

    def before_train(self) -> None:
        if not comm.is_main_process() or not self.path.is_file():
            return
        if self._is_resumed:
            content = load_file(str(self.path))
            if content.get("iteration", math.inf) < self.trainer.start_iter:
                self.best, self.iteration = content.get("metric"), content["iteration"]
                self.results = dict(content.get("results", {}))
                return
        # From another run: must not be taken for this run's best if it stops before evaluating.
        previous = self.path.with_name(f"{BEST}_previous.pth")
        self.path.replace(previous)
        (self.path.parent / BEST_DETECTIONS).unlink(missing_ok=True)
        logger.info(f"The best weights of an earlier run are now {previous}")

    def update(self, results: dict[str, Any]) -> None:
        """Saves the model if the results of this evaluation are the best so far."""
        flat = {key: float(value) for key, value in flatten_results_dict(results).items()}
        if self._metric not in flat:
            logger.warning(
                f"train.best_checkpoint.metric is '{self._metric}', which is not among the results "
                f"({', '.join(flat)}): no best checkpoint is kept"
            )
            return
        value = flat[self._metric]
        if not math.isfinite(value):  # nothing was detected; the file is still written
            value = -math.inf
        if self.best is not None and value <= self.best:
            return
        # After the last iteration, Detectron2's count is one higher.
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        self.best, self.iteration, self.results = value, iteration, flat
        self._checkpointer.categories = self.categories
        self._checkpointer.save(
            BEST, iteration=self.iteration, metric=value, metric_name=self._metric, results=flat
        )
        detections = self.path.parent / DETECTIONS
        if detections.is_file():
            shutil.copyfile(detections, self.path.parent / BEST_DETECTIONS)


class _WithoutTag(SafeCheckpointer):
    """A checkpointer that does not write the file ``last_checkpoint``."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class BaseLRScheduler(hooks.LRScheduler):
    """Detectron2's hook, but logs the base learning rate instead of the most common one."""

    def __init__(self, *, base_lr: float, scheduler: Any) -> None:
        """
        Args:
            base_lr: The config's learning rate, used by parameters without a factor.
            scheduler: As in Detectron2.
        """
        super().__init__(scheduler=scheduler)
        self._base_lr = base_lr

    def before_train(self) -> None:
        super().before_train()
        rates = [group.get("initial_lr") for group in self._optimizer.param_groups]
        if self._base_lr in rates:
            self._best_param_group_id = rates.index(self._base_lr)
