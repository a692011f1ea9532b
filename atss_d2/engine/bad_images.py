"""Counts, lists and limits the training images that cannot be used."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from ..data import DataError
from ..data.samples import Problem
from .console import FILE_ONLY

logger = logging.getLogger(__name__)

BAD_IMAGES = "bad_images.jsonl"


class BadImages:
    """Stops training at the first bad image, or lists it in a file, up to a limit.

    All processes append to ``bad_images.jsonl`` in the output folder, a line for each image:
    ``{"file_name": ..., "problem": ...}``. A resumed run goes on with the list.
    """

    def __init__(self, output_dir: str | os.PathLike[str] | None = None, *, limit: int = 0) -> None:
        """
        Args:
            output_dir: Folder of the list.
            limit: Number of different images that may be bad; with 0, the first one is an error.
        """
        self._path = None if output_dir is None else Path(output_dir) / BAD_IMAGES
        self._limit = limit

    @property
    def skips(self) -> bool:
        """Whether bad images are skipped."""
        return self._limit > 0

    def forget(self) -> None:
        """Removes the list of an earlier run; all processes must call it."""
        if self.skips and self._path is not None and comm.is_main_process():
            self._path.unlink(missing_ok=True)
        if self.skips:
            comm.synchronize()  # before another process adds to it

    def add(self, problems: Iterable[Problem]) -> None:
        """Adds images that were found bad while a batch was loaded.

        Raises:
            DataError: There are more bad images than allowed; the message names the last one.
        """
        for problem in problems:
            logger.info(f"{problem.sentence}\n{problem.details}", extra=FILE_ONLY)
            if not self.skips:
                raise DataError(problem.sentence)
            known = self._listed()
            if problem.file_name not in known:
                known.add(problem.file_name)
                self._append(problem)
                logger.warning(
                    f"Skipped bad image {len(known)} of at most {self._limit}: {problem.sentence}"
                )
            if len(known) > self._limit:
                raise DataError(
                    f"{len(known)} training images cannot be used, more than "
                    f"train.max_bad_images={self._limit}; {self._path} lists them, the last is: "
                    f"{problem.sentence}"
                )
            if has_event_storage():
                get_event_storage().put_scalar("bad_images", len(known), smoothing_hint=False)

    def _listed(self) -> set[str]:
        """Returns the file names in the list, which other processes also write."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return set()
        names = set()
        for line in lines:
            try:
                names.add(json.loads(line)["file_name"])
            except (ValueError, TypeError, KeyError):  # the last line, torn by a kill
                continue
        return names

    def _append(self, problem: Problem) -> None:
        line = json.dumps({"file_name": problem.file_name, "problem": problem.sentence})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:  # one write: lines do not mix
            file.write(f"{line}\n")
