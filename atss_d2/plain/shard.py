"""A part of the images of a run, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Shard(NamedTuple):
    """Part ``index`` of ``count``: 0 of 4 to 3 of 4."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"

    def num_images(self, total: int) -> int:
        """Returns how many of all images are of this shard."""
        return len(range(self.index, total, self.count))

    def detections(self, folder: Path) -> Path:
        """Returns the file of the results."""
        return folder / f"detections.{self._name}.jsonl"

    def bad_images(self, folder: Path) -> Path:
        """Returns the file of the images that could not be read."""
        return folder / f"bad_images.{self._name}.jsonl"

    def lock(self, folder: Path) -> Path:
        """Returns the file that is locked while a process works on the shard."""
        return folder / f".detections.{self._name}.lock"

    @property
    def _name(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"
