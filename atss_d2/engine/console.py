"""What training shows on the console; everything else is in ``log.txt``."""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.utils.events import CommonMetricPrinter

logger = logging.getLogger(__name__)

# `logger.info(..., extra=FILE_ONLY)`: for log.txt, not for the console.
FILE_ONLY = {"file_only": True}

# Loggers whose messages below a warning go to log.txt alone: the environment and the config, how
# data are held in memory, which keys of a checkpoint matched.
_QUIET = (
    "detectron2.checkpoint",
    "detectron2.data.build",
    "detectron2.data.common",
    "detectron2.data.dataset_mapper",
    "detectron2.engine.hooks",
    "fvcore.common.checkpoint",
)
_QUIET_IN_EVALUATION = ("detectron2.evaluation", "detectron2.data")
# ... but for the progress of long evaluations, and the number of objects of each class.
_SHOWN = ("Inference done", "Distribution of instances")
# A warning about what is right: the ids of classes need not be 1..K.
_HARMLESS = "Category ids in annotations are not in [1, #categories]!"


class ConsoleFilter(logging.Filter):
    """Keeps the console to what a person wants to see.

    Attributes:
        is_evaluating: Whether what evaluators report goes to ``log.txt`` alone, too.
    """

    is_evaluating = False

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "file_only", False):
            return False
        if record.levelno >= logging.WARNING:
            return not record.getMessage().strip().startswith(_HARMLESS)
        if record.name == "detectron2":  # from its default_setup
            return False
        quiet = _QUIET + (_QUIET_IN_EVALUATION if self.is_evaluating else ())
        if not any(record.name == name or record.name.startswith(f"{name}.") for name in quiet):
            return True
        return record.getMessage().startswith(_SHOWN)


_filter = ConsoleFilter()


def filter_console(*names: str) -> None:
    """Puts the filter on the console handlers of loggers; a second call changes nothing."""
    for name in names:
        for handler in logging.getLogger(name).handlers:
            # Detectron2's handler of log.txt is a StreamHandler, too.
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.addFilter(_filter)  # does nothing if it is there


@contextlib.contextmanager
def quiet_evaluation() -> Iterator[None]:
    """Within it, reports of evaluators, and what pycocotools prints, go to ``log.txt`` alone."""
    before, _filter.is_evaluating = _filter.is_evaluating, True
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        _filter.is_evaluating = before
        if printed.getvalue():
            logger.info(f"Printed by the evaluation:\n{printed.getvalue()}", extra=FILE_ONLY)


class ProgressPrinter(CommonMetricPrinter):
    """Detectron2's console line, with an ETA that counts evaluations and checkpoints too."""

    def __init__(self, max_iter: int, evaluation_seconds: Callable[[int], tuple[float, float]]):
        """
        Args:
            max_iter: Iterations of the whole run.
            evaluation_seconds: From the number of finished iterations to the seconds that
                evaluations have taken so far in this process and those that are still to come.
        """
        super().__init__(max_iter)
        self._evaluation_seconds = evaluation_seconds
        # (finished iterations, seconds without evaluations) at the last writes.
        self._marks: deque[tuple[int, float]] = deque(maxlen=20)

    def _get_eta(self, storage: Any) -> str:
        finished = storage.iter + 1
        past, to_come = self._evaluation_seconds(finished)
        self._marks.append((finished, time.perf_counter() - past))
        (first, start), (last, end) = self._marks[0], self._marks[-1]
        if last > first:
            seconds_per_iter = (end - start) / (last - first)
        elif "time" in storage.histories():  # the first line
            seconds_per_iter = storage.history("time").global_avg()
        else:
            return ""
        seconds = seconds_per_iter * (self._max_iter - finished) + to_come
        storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
        return str(datetime.timedelta(seconds=round(seconds)))
