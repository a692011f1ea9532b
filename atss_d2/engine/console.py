"""Limits what training prints to the console; ``log.txt`` has everything."""

from __future__ import annotations

import contextlib
import datetime
import functools
import io
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.utils.events import CommonMetricPrinter

from ..checkpoint import CheckpointError
from ..config import ConfigError
from ..data import DataError
from .nonfinite import NonFiniteError

logger = logging.getLogger(__name__)

# `logger.info(..., extra=FILE_ONLY)` writes to log.txt, not to the console.
FILE_ONLY = {"file_only": True}

# Loggers whose messages below the level of a warning go only to log.txt: on the environment, the
# config, how data are kept in memory, and which keys of a checkpoint match.
_QUIET = (
    "detectron2.checkpoint",
    "detectron2.data.build",
    "detectron2.data.common",
    "detectron2.data.dataset_mapper",
    "detectron2.engine.hooks",
    "fvcore.common.checkpoint",
)
_QUIET_IN_EVALUATION = ("detectron2.evaluation", "detectron2.data")
# ... except for the progress of long evaluations, and the number of objects per class.
_SHOWN = ("Inference done", "Distribution of instances")
_TRAIN_LOOP = "detectron2.engine.train_loop"
# A warning without cause: class ids need not be 1..K.
_HARMLESS = "Category ids in annotations are not in [1, #categories]!"

# Errors that the command reports in one sentence; Detectron2's trainer logs their traceback.
_REPORTED = (CheckpointError, ConfigError, DataError, NonFiniteError)


class ConsoleFilter(logging.Filter):
    """Shows only messages on the console that a user wants to see.

    Attributes:
        is_evaluating: Whether the reports of evaluators also go only to ``log.txt``.
    """

    is_evaluating = False

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "file_only", False):
            return False
        # Raised as well, and shown where it is caught.
        if record.exc_info and record.name == _TRAIN_LOOP:
            return False
        if record.exc_info and isinstance(record.exc_info[1], _REPORTED):
            return False
        if record.name == "detectron2.config.lazy" and isinstance(sys.exc_info()[1], OSError):
            return False  # it cannot save the config: what is written next ends the run
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
            # Detectron2's handler of log.txt is also a StreamHandler.
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                handler.addFilter(_filter)  # does nothing if it is already added
            else:
                handler.handleError = functools.partial(_handle_error, handler)


def _handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Loses a line of ``log.txt`` on a full disk: metrics and checkpoints end the run with that."""
    if not isinstance(sys.exc_info()[1], OSError):
        type(handler).handleError(handler, record)


def quiet_threads() -> None:
    """Leaves the error of TensorBoard's writing thread to the main thread, which raises it, too.

    A second call changes nothing.
    """
    if threading.excepthook is not _handle_thread_error:
        _other_threads.append(threading.excepthook)
        threading.excepthook = _handle_thread_error


_other_threads: list[Callable[[Any], object]] = []


def _handle_thread_error(arguments: Any) -> None:
    is_writer = type(arguments.thread).__module__.startswith("tensorboard.")
    if not is_writer or not isinstance(arguments.exc_value, OSError):
        _other_threads[-1](arguments)


def close_logs(*names: str) -> None:
    """Closes the log files of loggers, without an error for what the disk has no room for."""
    for name in names:
        for handler in logging.getLogger(name).handlers[:]:
            stream = getattr(handler, "stream", None)
            if stream is not None and stream not in (sys.stdout, sys.stderr):
                logging.getLogger(name).removeHandler(handler)
                with contextlib.suppress(OSError):
                    stream.close()


@contextlib.contextmanager
def quiet_evaluation() -> Iterator[None]:
    """Sends evaluators' reports and pycocotools' output only to ``log.txt`` within its context."""
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
    """Detectron2's console line, with an ETA that includes evaluations and checkpoints."""

    def __init__(self, max_iter: int, evaluation_seconds: Callable[[int], tuple[float, float]]):
        """
        Args:
            max_iter: Iterations of the whole run.
            evaluation_seconds: Maps the number of finished iterations to the seconds that
                evaluations in this process have taken so far and will still take.
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
