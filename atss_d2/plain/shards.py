"""A run over many images, divided into shards: its folder, what was asked, what is done.

Image i of the list belongs to shard i mod N. All that is known about a run is in its folder::

    run.json                            what was asked; a shard that asks otherwise is refused
    images.jsonl                        the list of images, if it was made from folders
    detections.00000-of-00004.jsonl     a line for each image that is done
    bad_images.00000-of-00004.jsonl     a line for each image that could not be read
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .json_lines import JsonLines, locked, write_durably
from .manifest import Manifest
from .shard import Shard

RUN_NAME, LIST_NAME = "run.json", "images.jsonl"
_PATTERNS = ("detections.*-of-*.jsonl", "bad_images.*-of-*.jsonl")


def read_run(folder: Path) -> dict[str, Any] | None:
    """Returns what was asked of the run in a folder; None if there is none.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / RUN_NAME
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        Shard(0, run["settings"]["shards"]).num_images(run["settings"]["images"])
        return run
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"'{path}' is damaged: --overwrite starts the run anew") from None


def claim(
    folder: Path,
    shard: Shard,
    settings: dict[str, Any],
    information: dict[str, Any],
    source: Manifest | Callable[[], str],
    *,
    overwrite: bool = False,
) -> Manifest:
    """Starts a run in a folder, or joins the one that is there.

    The first of several processes checks the list of images and writes :data:`RUN_NAME`, while the
    others wait.

    Args:
        folder: The folder, which exists.
        shard: The shard of this process.
        settings: What decides the results, as JSON values.
        information: What else to write to :data:`RUN_NAME`; it may differ between processes.
        source: The list of images, or a function that returns the content of :data:`LIST_NAME`.
        overwrite: Removes this shard's results, and all results if other settings made them.

    Returns:
        The list of images.

    Raises:
        ValueError: Other settings made the results in the folder, the list is wrong, or another
            process is writing what is to be removed.
    """
    list_path = folder / LIST_NAME
    with locked(folder / ".lock", wait=True):
        found = _found_settings(folder, overwrite)
        is_new = found is None
        if isinstance(source, Manifest):
            manifest = source
        else:
            if is_new or overwrite:
                text = source()
                if is_new or not list_path.exists() or list_path.read_text() != text:
                    _remove_results(folder)
                    write_durably(list_path, text)
                    is_new = True
            manifest = Manifest(list_path)
        settings = {**settings, "shards": shard.count, "images": manifest.num_images}
        settings["list_sha256"] = manifest.sha256
        difference = None if is_new else _difference(found, settings)
        if difference and not overwrite:
            raise ValueError(
                f"'{folder}' has results of another run, in which {difference}: choose another "
                "--output, or start anew with --overwrite"
            )
        if is_new or difference:
            manifest.check()
            _remove_results(folder)
            content = {"settings": settings, **information, "list": str(manifest.path)}
            write_durably(folder / RUN_NAME, json.dumps(content, indent=1) + "\n")
        elif overwrite:
            with shard_lock(folder, shard):
                for path in (shard.detections(folder), shard.bad_images(folder)):
                    path.unlink(missing_ok=True)
    return manifest


def _found_settings(folder: Path, overwrite: bool) -> dict[str, Any] | None:
    """Returns the settings of the run in the folder; None if a new one can be started."""
    try:
        run = read_run(folder)
    except ValueError:
        if overwrite:
            return None
        raise
    if run is not None:
        return run["settings"]
    names = sorted(path.name for pattern in _PATTERNS for path in folder.glob(pattern))
    if names and not overwrite:
        raise ValueError(
            f"'{folder}' has results ({names[0]}) without {RUN_NAME}: choose another --output, or "
            "start anew with --overwrite"
        )
    return None


def _remove_results(folder: Path) -> None:
    """Removes the results of all shards.

    Raises:
        ValueError: A process is writing one of them.
    """
    with contextlib.ExitStack() as stack:
        for path in folder.glob(".detections.*.lock"):
            if not stack.enter_context(locked(path, wait=False)):
                raise ValueError(f"another process is writing to '{folder}': stop it first")
        for pattern in _PATTERNS:
            for path in folder.glob(pattern):
                path.unlink()


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Returns the first settings that differ, in words; "" if none do."""
    old, new = dict(_flat(found)), dict(_flat(asked))
    words = [
        f"{key} was {_short(old.get(key))} instead of {_short(new.get(key))}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    more = f" (and {len(words) - 2} more)" if len(words) > 2 else ""
    return " and ".join(words[:2]) + more


def _flat(values: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from _flat(value, f"{key}.{name}" if key else name)
    elif isinstance(values, (list, tuple)) and values:
        for i, value in enumerate(values):
            yield from _flat(value, f"{key}.{i}")
    else:
        yield key, values


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


@contextlib.contextmanager
def shard_lock(folder: Path, shard: Shard) -> Iterator[None]:
    """Holds the lock of a shard.

    Raises:
        ValueError: Another process holds it.
    """
    with locked(shard.lock(folder), wait=False) as is_free:
        if not is_free:
            raise ValueError(
                f"another process is writing {shard} in '{folder}': wait for it or stop it"
            )
        yield


class ShardResults:
    """What is done of a shard, and how to add to it. Hold :func:`shard_lock` meanwhile.

    Attributes:
        num_done: The number of images with detections.
        num_bad: The number of images that could not be read.
        num_damaged: The number of lines that were not whole and were removed.
    """

    def __init__(
        self, folder: Path, shard: Shard, num_images: int, *, retry_bad: bool = False
    ) -> None:
        """Reads which images are done.

        Args:
            folder: The folder of the run.
            shard: The shard.
            num_images: The number of all images.
            retry_bad: Whether to forget which images could not be read.
        """
        self._shard = shard
        self._is_known = bytearray(shard.num_images(num_images))
        self.num_done = self.num_bad = 0
        self._detections = JsonLines(shard.detections(folder))
        self._bad_images = JsonLines(shard.bad_images(folder))
        self.num_damaged = self._detections.recover(self._accept)
        self.num_done = sum(self._is_known)
        if retry_bad:
            self._bad_images.path.unlink(missing_ok=True)
        self.num_damaged += self._bad_images.recover(self._accept)
        self.num_bad = sum(self._is_known) - self.num_done

    def _accept(self, row: dict[str, Any]) -> bool:
        """Returns whether a line is of an image of this shard, and its first."""
        index = row.get("index")
        if type(index) is not int or index < 0 or index % self._shard.count != self._shard.index:
            return False
        place = index // self._shard.count
        if place >= len(self._is_known) or self._is_known[place]:
            return False
        self._is_known[place] = 1
        return True

    @property
    def num_images(self) -> int:
        """The number of images of the shard."""
        return len(self._is_known)

    @property
    def is_complete(self) -> bool:
        """Whether no image is left to do."""
        return self.num_done + self.num_bad == self.num_images

    def is_left(self, index: int) -> bool:
        """Returns whether an image of the list is of this shard, and not done."""
        place, rest = divmod(index, self._shard.count)
        return rest == self._shard.index and not self._is_known[place]

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Adds the lines of images that are done."""
        self._detections.append(rows)
        self.num_done += len(rows)

    def add_bad(self, row: dict[str, Any], reason: str) -> None:
        """Adds an image of the list that could not be read."""
        names = ("index", "file_name", "image_id")
        self._bad_images.append([{**{key: row[key] for key in names}, "reason": reason}])
        self.num_bad += 1

    def close(self) -> None:
        """Writes everything to the disk."""
        self._detections.close()
        self._bad_images.close()
