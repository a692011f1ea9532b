"""Inspects the image files of a data set: whether they are readable, their sizes and modes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checks.copies import equal_files
from ..checks.probe import Probe
from ..checks.probing import probe_files

# Decoding all images of a large data set would take minutes; the first ones are enough.
MAX_DECODED = 2000


@dataclass(frozen=True)
class ImageFile:
    """An image file and what was seen of it."""

    path: Path
    probe: Probe

    @property
    def problem(self) -> str:
        """Code of the reason why it cannot be used; "" if it can."""
        return self.probe.problem

    @property
    def width(self) -> int:
        """Width in pixels as Detectron2 reads the image, with EXIF rotation applied."""
        return self.probe.width

    @property
    def height(self) -> int:
        """Height in pixels, likewise."""
        return self.probe.height


def inspect_images(paths: Sequence[Path], *, max_decoded: int = MAX_DECODED) -> list[ImageFile]:
    """Opens image files, and decodes the first ``max_decoded`` of them."""
    paths = list(paths)
    return list(map(ImageFile, paths, probe_files(list(map(str, paths)), num_decoded=max_decoded)))


def group_equal_files(files: Iterable[ImageFile]) -> list[list[ImageFile]]:
    """Returns groups of two or more files with the same content, regardless of their names."""
    files = list(files)
    groups = equal_files([str(file.path) for file in files], [file.probe for file in files])
    return [[files[i] for i in group] for group in groups]
