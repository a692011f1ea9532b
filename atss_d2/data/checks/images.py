"""Checks what was seen of the image files against what a data set says about them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from PIL import Image

from .findings import Example, Report
from .probe import Probe

_SMALL = 8  # pixels
_LONG = 500  # times as long as wide
_MAX_SOUGHT = 1000  # missing files that are looked for under other names

UNUSABLE = (
    *("image_missing", "image_no_file", "image_forbidden", "image_empty", "image_html"),
    *("image_lfs", "image_truncated", "image_bomb", "image_unreadable"),
)
# Modes that are not read as they are. Others, RGB and RGBX, need no finding.
_MODES = {
    "image_gray": ("1", "L", "LA", "La", "L+t", "1+t"),
    "image_alpha": ("RGBA", "RGBa", "LA", "La", "PA", "P+t", "L+t", "RGB+t"),
    "image_cmyk": ("CMYK",),
    "image_palette": ("P", "PA", "P+t"),
    "image_mode": ("YCbCr", "LAB", "HSV"),
}


def check_files(
    report: Report,
    names: Sequence[str],
    probes: Sequence[Probe],
    *,
    sizes: Sequence[tuple[float, float]] | None = None,
    image_ids: Sequence[Any] | None = None,
    root: str | None = None,
) -> None:
    """Reports everything that is odd about image files.

    Args:
        report: Takes the findings.
        names: N names as the data set has them.
        probes: What was seen of the files.
        sizes: (N, 2) width and height as the data set says; a NaN is not compared.
        image_ids: N ids, for examples.
        root: The folder that the names are relative to, to look for missing files.
    """
    num = len(names)

    def describe(index: int) -> Example:
        image_id = image_ids[index] if image_ids is not None else None
        return Example(f"'{names[index]}'", names[index], image_id)

    def describe_mode(index: int) -> Example:
        return _with_text(describe(index), f"'{names[index]}' ({probes[index].mode})")

    def describe_size(index: int) -> Example:
        found, said = probes[index], sizes[index]
        text = f"'{names[index]}' ({found.width} x {found.height}, JSON: {said[0]:g} x {said[1]:g})"
        return _with_text(describe(index), text, f"{found.width} x {found.height}")

    by_problem = defaultdict(list)
    for i, x in enumerate(probes):
        by_problem[x.problem].append(i)
    for code in UNUSABLE:
        fix = ""
        if code == "image_missing" and by_problem[code]:
            fix = _fix_of_missing([names[i] for i in by_problem[code]], root)
        report.add(code, by_problem[code], describe, fix=fix)
    good = np.array(by_problem[""], np.int64)
    found = np.array([(x.width, x.height) for x in probes], np.int64).reshape(num, 2)[good]
    if sizes is not None:
        said = np.array(sizes, np.float64).reshape(num, 2)[good]
        wrong = np.isfinite(said).all(1) & (said != found).any(1)
        report.add("image_size", good[wrong], describe_size, fix=_fix_of_sizes(found, said, wrong))
    short, long = found.min(1, initial=2**60), found.max(1, initial=0)
    limit = Image.MAX_IMAGE_PIXELS or np.inf
    report.add("image_huge", good[found.prod(1) > limit], describe)
    report.add("image_small", good[short < _SMALL], describe)
    report.add("image_long", good[long > _LONG * short], describe)
    modes = [(i, probes[i].mode) for i in good]
    for code, chosen in _MODES.items():
        report.add(code, [i for i, mode in modes if mode in chosen], describe)
    deep = [i for i, mode in modes if mode[:1] in ("I", "F")]
    report.add("image_deep", deep, describe_mode)
    turned = [i for i in good if probes[i].orientation != 1]
    report.add("image_turned", turned, describe)


def _with_text(example: Example, text: str, value: Any = None) -> Example:
    return Example(text, example.file, example.image_id, value=value)


def _fix_of_sizes(found: np.ndarray, said: np.ndarray, wrong: np.ndarray) -> str:
    if not wrong.any():
        return ""
    if (said[wrong][:, ::-1] == found[wrong]).all():
        return (
            "width and height are swapped, or the data set does not know that EXIF data turn the "
            "images: swap them, or remove the tag Orientation from the files"
        )
    factors = found[wrong] / np.maximum(said[wrong], 1)
    if len(factors) > 1 and np.ptp(factors) < 0.02:
        return f"the files are resized by {factors.mean():.3g}: scale sizes and boxes likewise"
    return ""


def _fix_of_missing(names: Sequence[str], root: str | None) -> str:
    sought = list(names[:_MAX_SOUGHT])
    base = root if root is not None else ""
    broken = [name for name in sought if _is_link(os.path.join(base, name))]
    if broken:
        target = os.readlink(os.path.join(base, broken[0]))
        return f"'{broken[0]}' is a symbolic link to '{target}', which does not exist"
    moved = find_moved(Path(base), dict(enumerate(sought)))
    if moved:
        first = next(iter(moved))
        return (
            f"{len(moved)} of them are there under another name, such as '{moved[first]}' for "
            f"'{sought[first]}': change file_name (start_project does)"
        )
    return ""


def _is_link(path: str) -> bool:
    try:
        return os.path.islink(path)
    except ValueError:
        return False


def find_moved(root: Path, names: dict[Any, str]) -> dict[Any, str]:
    """Finds files whose names were written on another machine.

    Their names may have leading folders that do not exist here, backslashes, URL escapes, or
    another spelling: capitals, or accents as characters of their own.

    Args:
        root: Folder of the images.
        names: Names by image id, of files that are missing or unreadable.

    Returns:
        The names of files found under ``root``, by image id. If several images would get the same
        file, none does.
    """
    found: dict[Any, str] = {}
    listed: dict[Path, dict[str, str]] = {}
    for i, name in names.items():
        parts = PurePosixPath(name.replace("\\", "/")).parts
        tails = [
            "/".join(parts[start:]) for start in range(len(parts)) if ".." not in parts[start:]
        ]
        tails = [
            tail for part in tails for tail in (part, unquote(part)) if tail.lstrip("/") == tail
        ]
        tail = next((tail for tail in tails if tail != name and _is_file(root / tail)), None)
        tail = tail or next(filter(None, (_respell(root, tail, listed) for tail in tails)), None)
        if tail is not None and tail != name:
            found[i] = tail
    uses = Counter(found.values())
    return {i: tail for i, tail in found.items() if uses[tail] == 1}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _respell(root: Path, tail: str, listed: dict[Path, dict[str, str]]) -> str | None:
    """Returns the name of the only file that differs in capitals or the form of accents."""
    folder, _, name = tail.rpartition("/")
    place = root / folder
    if place not in listed:
        listed[place] = spellings = {}
        try:
            files = os.listdir(place)
        except (OSError, ValueError):
            files = []
        for file in files:
            key = _plain(file)
            spellings[key] = "" if key in spellings else file
    file = listed[place].get(_plain(name))
    return (f"{folder}/{file}" if folder else file) if file and _is_file(place / file) else None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
