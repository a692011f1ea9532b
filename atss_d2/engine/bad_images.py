"""Counts, lists and limits the training images that cannot be used."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from omegaconf import DictConfig

from ..config import ConfigError, by_kind, view_of
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

    def __init__(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        limit: int = 0,
        limit_key: str = "train.max_bad_images",
    ) -> None:
        """
        Args:
            output_dir: Folder of the list.
            limit: Number of different images that may be bad; with 0, the first one is an error.
            limit_key: The config's key of the limit, for the error message.
        """
        self._path = None if output_dir is None else Path(output_dir) / BAD_IMAGES
        self._limit = limit
        self._limit_key = limit_key

    @classmethod
    def from_config(cls, cfg: DictConfig | CfgNode) -> BadImages:
        """Reads ``train.on_bad_image`` and ``train.max_bad_images``, or yaml's keys for them.

        Raises:
            ConfigError: A value is invalid.
        """
        view = view_of(cfg)
        choice_key, limit_key = by_kind(
            cfg,
            lazy=("train.on_bad_image", "train.max_bad_images"),
            yaml=("MODEL.ATSS.TRAIN.ON_BAD_IMAGE", "MODEL.ATSS.TRAIN.MAX_BAD_IMAGES"),
        )
        choice, limit = view.get(choice_key) or "stop", view.get(limit_key)
        if choice not in ("stop", "skip"):
            raise ConfigError(f"{choice_key} must be 'stop' or 'skip', got {choice!r}")
        if choice == "stop":
            return cls(view.output_dir)
        limit = 100 if limit is None else limit
        if not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"{limit_key} must be an integer >= 1, got {limit!r}")
        return cls(view.output_dir, limit=limit, limit_key=limit_key)

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
            is_new = problem.file_name not in known
            if is_new:
                known.add(problem.file_name)
                self._append(problem)
            if len(known) > self._limit:
                raise DataError(
                    f"{len(known)} training images cannot be used, more than "
                    f"{self._limit_key} ({self._limit}); '{self._path}' lists them, the last is: "
                    f"{problem.sentence}"
                )
            if is_new:
                logger.warning(
                    f"Skipped bad image {len(known)} of at most {self._limit}: {problem.sentence}"
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
        before = self._path.read_bytes() if self._path.is_file() else b""
        torn = "\n" if before and not before.endswith(b"\n") else ""  # by a kill
        with self._path.open("a", encoding="utf-8") as file:  # one write: lines do not mix
            file.write(f"{torn}{line}\n")
