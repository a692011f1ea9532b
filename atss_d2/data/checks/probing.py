"""Looks at all image files of a data set: in threads, with a progress bar and a cache."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from tqdm import tqdm

from .cache import ProbeCache, status_of
from .probe import Probe, probe

_CHUNK = 64  # files that a thread takes at once
_BAR_AFTER = 2.0  # seconds


def probe_files(
    paths: Sequence[str],
    *,
    full: bool = False,
    num_decoded: int = 0,
    cache: bool = True,
    root: str | None = None,
    what: str = "Looking at images",
) -> list[Probe]:
    """Looks at image files; what was seen before of an unchanged file is not read again.

    Args:
        paths: The files.
        full: Decode all pixels of every file; otherwise only of those that seem to be cut off.
        num_decoded: Decode this many of the first files even without ``full``.
        cache: Read and write the cache in the user's cache folder.
        root: The folder that the images are in, which names the cache; by default their common one.
        what: Label of the progress bar, which appears after two seconds.

    Returns:
        One probe for each path. No file raises.
    """
    if not paths:
        return []
    known = ProbeCache(root or _common_folder(paths)) if cache else None
    found: list[Probe | None] = [None] * len(paths)
    statuses = list(map(status_of, paths)) if known else []
    is_full = [full or i < num_decoded for i in range(len(paths))]
    if known:
        found = [known.get(p, s, full=f) for p, s, f in zip(paths, statuses, is_full)]
    todo = [i for i, x in enumerate(found) if x is None]
    chunks = [todo[i : i + _CHUNK] for i in range(0, len(todo), _CHUNK)]

    def look(chunk: list[int]) -> list[Probe]:
        return [probe(paths[i], full=is_full[i]) for i in chunk]

    # Mostly waits for the disk and the codecs, which do not hold Python's lock.
    workers = min(16, 4 * (os.cpu_count() or 1))
    # No bar without a terminal.
    bar_options = {"delay": _BAR_AFTER, "disable": None, "leave": False}
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(todo), desc=what, unit=" images", **bar_options) as bar,
    ):
        # Findings say the same.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        for chunk, probes in zip(chunks, pool.map(look, chunks)):
            for i, x in zip(chunk, probes):
                found[i] = x
                if known:
                    known.put(paths[i], statuses[i], x)
            bar.update(len(chunk))
    if known and todo:
        known.write()
    return found


def _common_folder(paths: Sequence[str]) -> str:
    """Returns a folder that the paths share, the same for a part of them in most data sets."""
    folders = {os.path.dirname(path) for path in paths}
    try:
        return os.path.commonpath(folders)
    except ValueError:  # absolute and relative ones, or a null byte
        return ""
