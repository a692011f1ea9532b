"""Lists of images in files, read line by line, so that a list may have millions of lines."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Keys of a line of the results that the run decides.
RESULT_KEYS = ("index", "boxes", "scores", "category_ids")


class Manifest:
    """A list of images: a path per line, or a JSON object with ``file_name`` per line.

    Attributes:
        path: The file.
        num_images: The number of images; blank lines do not count.
        sha256: Hash of the file's content.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the file once, for its length and hash.

        Args:
            path: A text file. If its first line begins with ``{``, lines are JSON objects with
                ``file_name`` and, if you like, ``image_id`` and any other keys.

        Raises:
            ValueError: There is no such file, or it contains no line.
            OSError: The file cannot be read.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"there is no list of images '{path}'")
        digest, self.num_images, self._is_json = hashlib.sha256(), 0, False
        with open(self.path, "rb") as file:
            for line in file:
                digest.update(line)
                if line.strip():
                    if not self.num_images:
                        start = line.removeprefix(codecs.BOM_UTF8).lstrip()
                        self._is_json = start.startswith(b"{")
                    self.num_images += 1
        if not self.num_images:
            raise ValueError(f"'{path}' lists no image: it is empty")
        self.sha256 = digest.hexdigest()

    def rows(self, is_wanted: Callable[[int], bool] | None = None) -> Iterator[dict[str, Any]]:
        """Yields a dict for each image, with ``index`` 0, 1, ... and ``image_id`` 1, 2, ....

        Other keys, and an ``image_id`` of its own, are those of the line.

        Args:
            is_wanted: Called with an index; returns whether to yield the image. Default: all.

        Raises:
            ValueError: A line is not as it must be; the message gives its number.
        """
        for _, row in self._numbered_rows(is_wanted):
            yield row

    def _numbered_rows(
        self, is_wanted: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        index = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                if index == 0:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if is_wanted is None or is_wanted(index):
                    row = self._parse(line, number)
                    yield number, {"index": index, "image_id": index + 1, **row}
                index += 1

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        where = f"line {number} of '{self.path}'"
        if not self._is_json:
            if b"\0" in line:
                raise ValueError(f"{where} is not text: save the list as UTF-8")
            return {"file_name": os.fsdecode(line.rstrip(b"\r\n"))}
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ValueError(f'{where} is not a JSON object with "file_name"')
        if "image_id" in row and type(row["image_id"]) not in (int, str):
            raise ValueError(
                f'{where} has the "image_id" {row["image_id"]}: use a number or a text'
            )
        for key in RESULT_KEYS:
            if key in row:
                raise ValueError(f'{where} has the key "{key}", a key of the results: rename it')
        return row

    def check(self) -> None:
        """Checks all lines, and that no two images have the same id.

        Raises:
            ValueError: A line is not as it must be; the message gives its number.
        """
        hashes = array("q", (hash(row["image_id"]) for row in self.rows()))
        ordered = np.sort(np.frombuffer(hashes, np.int64))
        doubles = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if not doubles:
            return
        first: dict[int | str, int] = {}
        for number, row in self._numbered_rows():
            image_id = row["image_id"]
            if hash(image_id) in doubles and first.setdefault(image_id, number) != number:
                raise ValueError(
                    f"lines {first[image_id]} and {number} of '{self.path}' have the same image_id "
                    f"{image_id!r} (without one, it is the line's number): give each its own"
                )


def manifest_line(file_name: str, **more: Any) -> str:
    """Returns the line of an image, for a list of JSON objects."""
    return json.dumps({"file_name": file_name, **more}) + "\n"
