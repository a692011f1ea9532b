"""Continues metrics and evaluations of a resumed run as if it had not been interrupted."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    JSONWriter,
    TensorboardXWriter,
)

from ..plain.files import replacing

logger = logging.getLogger(__name__)

_WINDOW = 20  # Detectron2's writers show medians over so many iterations
_OF_THE_CLOCK = ("time", "data_time", "rank_data_time", "eta_seconds")


class ContinuedMetrics(HookBase):
    """Keeps each iteration once in ``metrics.json``, and makes up for a missed evaluation.

    Checkpoints are written before the evaluation of their iteration and before its metrics. So they
    keep the latest scalars, of which a resumed run writes what is missing; medians over the last
    iterations are those of an uninterrupted run. What the run before wrote about later iterations
    is dropped, and hidden in TensorBoard. Must be the last hook.
    """

    def __init__(self, evaluation: hooks.EvalHook, writer: hooks.PeriodicWriter | None) -> None:
        """
        Args:
            evaluation: Evaluates the model.
            writer: Writes the metrics; None if this process does not.
        """
        self._evaluation = evaluation
        self._writer = writer
        self._scalars: dict[str, dict[str, Any]] | None = None
        self._was_finished = False

    @classmethod
    def of(cls, built: Iterable[HookBase | None]) -> ContinuedMetrics:
        """Returns the hook for those that Detectron2 has built."""
        evaluation = next(x for x in built if isinstance(x, hooks.EvalHook))
        return cls(
            evaluation, next((x for x in built if isinstance(x, hooks.PeriodicWriter)), None)
        )

    def state_dict(self) -> dict[str, Any]:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:  # before training
            return {}
        smoothed = storage.smoothing_hints()
        writer = self._json_writer
        written = -1 if writer is None else writer._last_write
        scalars = {
            name: {
                "is_smoothed": smoothed[name],
                # (value, iteration)
                "values": storage.history(name).values()[-_WINDOW if smoothed[name] else -1 :],
            }
            for name, (_, iteration) in sorted(storage.latest().items())
            if name not in _OF_THE_CLOCK and (smoothed[name] or iteration > written)
        }
        return {
            "scalars": scalars,
            "is_finished": self.trainer.iter + 1 >= self.trainer.max_iter,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._scalars, self._was_finished = state_dict["scalars"], state_dict["is_finished"]

    def before_train(self) -> None:
        start, storage = self.trainer.start_iter, self.trainer.storage
        for name, scalar in (self._scalars or {}).items():
            for value, iteration in scalar["values"]:
                storage.put_scalar(
                    name, value, smoothing_hint=scalar["is_smoothed"], cur_iter=iteration
                )
        self._scalars, scalars = None, self._scalars
        period = self._evaluation._period
        is_due = period > 0 and start > 0 and start % period == 0 and start < self.trainer.max_iter
        is_missed, last = is_due, start - 1
        if self._writer is not None:
            is_missed, last = self._continue_file(scalars, is_due=is_due)
        if comm.all_gather(is_missed)[0]:  # all processes evaluate, or none
            logger.info(f"Making up for the evaluation after iteration {start - 1}")
            self.trainer.iter = storage.iter = start - 1
            self._evaluation._do_eval()
            self.trainer.iter = storage.iter = start
        if self._writer is not None and last < start - 1 and start % self._writer._period == 0:
            for writer in self._writer._writers:
                if not isinstance(writer, CommonMetricPrinter):
                    writer.write()

    @property
    def _json_writer(self) -> JSONWriter | None:
        writers = [] if self._writer is None else self._writer._writers
        return next((x for x in writers if isinstance(x, JSONWriter)), None)

    def _continue_file(
        self, scalars: dict[str, dict[str, Any]] | None, *, is_due: bool
    ) -> tuple[bool, int]:
        """Drops what ``metrics.json`` has about iterations that will be trained again.

        Args:
            scalars: Those of the checkpoint, if it has any.
            is_due: Whether the last iteration ended with an evaluation.

        Returns:
            Whether its results are missing, and the last iteration in the file, at least -1.
        """
        writer = self._json_writer
        start = self.trainer.start_iter
        path = Path("" if writer is None else getattr(writer._file_handle, "name", ""))
        if not path.is_file():  # no such writer, or a remote file
            return is_due, start - 1
        text = path.read_text(encoding="utf-8")
        writer._file_handle.close()
        if not start and text:
            path.replace(path.with_name("metrics_previous.json"))
        lines, at_start, last = [], {}, -1
        for line in text.splitlines():
            try:
                row = json.loads(line)
                iteration = row["iteration"]
            except (ValueError, TypeError, KeyError):  # torn by a kill
                continue
            if iteration < start - 1:
                lines.append(line)
                last = max(last, iteration)
            # The last evaluation of a run that is prolonged counts one iteration more.
            elif iteration < start + (self._was_finished and start < self.trainer.max_iter):
                at_start.update(row)
        results = {k: v for k, v in at_start.items() if _is_result(k, scalars, start - 1)}
        is_missed = is_due and not results
        is_logged = start % self._writer._period == 0 or self._was_finished or scalars is None
        if is_missed:  # an evaluation that failed leaves a line without results
            pass
        elif is_logged and at_start:
            last = start - 1
            lines.append(json.dumps({**at_start, "iteration": last}, sort_keys=True))
        else:  # written because the run before ended; not due yet
            self.trainer.storage.put_scalars(**results, smoothing_hint=False, cur_iter=start - 1)
        content = "".join(f"{line}\n" for line in lines)
        if start and content != text:
            with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        writer._file_handle = path.open("a", encoding="utf-8")
        for other in self._writer._writers:
            if isinstance(other, (JSONWriter, TensorboardXWriter)):
                other._last_write = last
            if isinstance(other, TensorboardXWriter) and text:
                other._writer_args["purge_step"] = last + 1
        return is_missed, last


def _is_result(name: str, scalars: dict[str, dict[str, Any]] | None, iteration: int) -> bool:
    """Returns whether a scalar of ``metrics.json`` was written by an evaluation.

    Args:
        name: Its name.
        scalars: Those of the checkpoint, which was saved before the evaluation.
        iteration: The iteration of the checkpoint.
    """
    if name in _OF_THE_CLOCK or name == "iteration":
        return False
    if scalars is None:  # a checkpoint of an earlier version
        return "/" in name and not name.startswith("atss/")
    known = scalars.get(name)
    return known is None or not (known["is_smoothed"] or known["values"][-1][1] == iteration)
