"""Random changes of a small data set, and an oracle that reads it on its own.

    python -m tests.data.fuzz          # 500 data sets, about 3 minutes of a core
    python -m tests.data.fuzz 50 7     # 50, from seed 7

Nothing may end in a traceback; check-dataset and the start of a training must agree; what the
oracle finds strictly valid must train on exactly the boxes that it reads; and nothing else may pass
without a word.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.data.cases import FINE, STOPS, Sample
from tests.data.trying import check, start_training

VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 10, 11, 0.5, 3.0, 10.0, -0.0, 1e308, 10**400, 2**63),
    *(math.nan, math.inf, -math.inf, "", "x", "3", "10", "NaN", "000.jpg", "a\nb", "\ud800", "ä"),
    *(
        [],
        {},
        [1, 2],
        [4, 4, 20, 20],
        [4.5, 4.5, 20.25, 9],
        [[1]],
        {"id": 3},
        [None] * 4,
        "y" * 999,
    ),
)
KEYS = ("id", "image_id", "bbox", "ignore", "segmentation", "keypoints", "iscrowd", "area", "width")


def _nodes(content: Any) -> list[tuple[Any, Any]]:
    """All (container, key) pairs below a value."""
    found, waiting = [], [content]
    while waiting:
        node = waiting.pop()
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            found.append((node, key))
            if isinstance(value, list | dict):
                waiting.append(value)
    return found


# Changes: each takes a sample, its part and a generator of random numbers


def set_value(s: Sample, part: str, rng: np.random.Generator) -> None:
    node, key = _pick(_nodes(s.content[part]), rng)
    node[key] = copy.deepcopy(_pick(VALUES, rng))


def remove_value(s: Sample, part: str, rng: np.random.Generator) -> None:
    node, key = _pick(_nodes(s.content[part]), rng)
    del node[key]


def repeat_entry(s: Sample, part: str, rng: np.random.Generator) -> None:
    entries = _entries(s, part, rng)
    if entries:
        entries.append(copy.deepcopy(_pick(entries, rng)))


def change_entry(s: Sample, part: str, rng: np.random.Generator) -> None:
    entries = [x for x in _entries(s, part, rng) if isinstance(x, dict) and x]
    if entries:
        entry = _pick(entries, rng)
        entry[_pick([*entry, *KEYS], rng)] = copy.deepcopy(_pick(VALUES, rng))


def change_all(s: Sample, part: str, rng: np.random.Generator) -> None:
    entries = [x for x in _entries(s, part, rng) if isinstance(x, dict) and x]
    if entries:
        key, value = _pick([*entries[0], *KEYS], rng), _pick(VALUES, rng)
        for entry in entries:
            entry[key] = copy.deepcopy(value)


def move_boxes(s: Sample, part: str, rng: np.random.Generator) -> None:
    annotations = [x for x in s.content[part].get("annotations") or () if isinstance(x, dict)]
    scale, shift = _pick((-1, 0.001, 0.5, 1, 1, 4), rng), _pick((0, 0, -30, 30, 1000), rng)
    is_one = rng.random() < 0.5
    for a in annotations[: 1 if is_one else None]:
        with contextlib.suppress(TypeError, KeyError, OverflowError):
            a["bbox"] = [x * scale + shift * (i < 2) for i, x in enumerate(a["bbox"])]


def shuffle(s: Sample, part: str, rng: np.random.Generator) -> None:
    entries = _entries(s, part, rng)
    entries[:] = [entries[i] for i in rng.permutation(len(entries))]


def exchange_values(s: Sample, part: str, rng: np.random.Generator) -> None:
    nodes = _nodes(s.content[part])
    (one, x), (other, y) = _pick(nodes, rng), _pick(nodes, rng)
    with contextlib.suppress(LookupError):
        one[x], other[y] = copy.deepcopy(other[y]), copy.deepcopy(one[x])


def change_text(s: Sample, part: str, rng: np.random.Generator) -> None:
    data = bytearray(json.dumps(s.content[part]).encode())
    place = int(rng.integers(len(data)))
    kind = rng.integers(5)
    if kind == 0:
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[place : place + int(rng.integers(1, 40))]
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data[place:place] = rng.bytes(int(rng.integers(1, 5)))
    else:
        data = bytearray(bytes(data).decode().encode(_pick(("utf-16", "utf-8-sig"), rng)))
    s.raw[part] = bytes(data)


def change_file(s: Sample, part: str, rng: np.random.Generator) -> None:
    paths = sorted(p for p in (s.folder / part).iterdir() if p.is_file())
    if not paths:
        return
    path = _pick(paths, rng)
    data = bytearray(path.read_bytes())
    kind, place = rng.integers(9), int(rng.integers(max(len(data), 1)))
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(data[:place])
    elif kind == 2 and data:
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    elif kind == 3:
        path.write_bytes(data[:place] + bytes(len(data) - place))
    elif kind == 4:
        shutil.copy(_pick(paths, rng), s.folder / "copy")
        (s.folder / "copy").replace(path)
    elif kind == 5:
        path.write_bytes(rng.bytes(200))
    elif kind == 6:
        path.write_bytes(bytes(data) + rng.bytes(9))
    elif kind == 7:
        path.rename(path.with_name(path.name.upper()))
    elif kind == 8:
        height, width = (int(x) for x in rng.integers(1, 90, 2))
        cv2.imwrite(str(path), rng.integers(0, 255, (height, width, 3)).astype(np.uint8))


CHANGES: tuple[Callable, ...] = (
    *(set_value, set_value, remove_value, repeat_entry, change_entry, change_entry, change_entry),
    *(change_all, move_boxes, shuffle, exchange_values, change_text, change_file, change_file),
)


def _pick(choices: Any, rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _entries(s: Sample, part: str, rng: np.random.Generator) -> list:
    lists = [x for x in s.content[part].values() if isinstance(x, list)]
    return _pick(lists, rng) if lists else []


def mutate(s: Sample, rng: np.random.Generator) -> list[str]:
    """Changes a sample once or twice; returns the names of the changes."""
    names = []
    for _ in range(int(rng.integers(1, 3))):
        part, change = _pick(("train", "train", "val"), rng), _pick(CHANGES, rng)
        with contextlib.suppress(IndexError, ValueError):  # nothing left to change
            change(s, part, rng)
        names.append(f"{change.__name__}({part})")
    return names


# The oracle, which shares no code with the package


class Invalid(Exception):
    """The data set is not strictly valid."""


def read_strictly(sample: Sample) -> dict[Any, set[tuple]]:
    """Returns the (class, x0, y0, x1, y1) of each training image, if everything is as it should be.

    Raises:
        Invalid: Something is not.
    """
    truths = [_read_part(sample, part) for part in ("train", "val")]
    (truth, names), (_, val_names) = truths
    _require(names == val_names, "classes differ")
    return truth


def _read_part(sample: Sample, part: str) -> tuple[dict[Any, set[tuple]], list[str]]:
    def refuse(literal: str) -> None:
        raise Invalid(literal)

    try:
        text = sample.json_file(part).read_bytes().decode("utf-8")
        content = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Invalid(str(error)) from None
    _require(isinstance(content, dict), "top level")
    lists = [content.get(key) for key in ("images", "annotations", "categories")]
    _require(all(isinstance(x, list) and x for x in lists), "lists")
    _require(all(isinstance(x, dict) for entries in lists for x in entries), "entries")
    images, annotations, categories = lists
    _require(all(_is_id(c.get("id")) and isinstance(c["id"], int) for c in categories), "class ids")
    names = [c.get("name") for c in sorted(categories, key=lambda c: c["id"])]
    _require(all(isinstance(name, str) for name in names), "class names")
    _require(len({c["id"] for c in categories}) == len(set(names)) == len(names), "classes twice")
    sizes, files = {}, set()
    for image in images:
        _require(_is_id(image.get("id")) and image["id"] not in sizes, "image ids")
        name = image.get("file_name")
        _require(isinstance(name, str) and name != "" and name not in files, "name")
        files.add(name)
        try:
            data = (sample.folder / part / name).read_bytes()
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except (OSError, ValueError, cv2.error):  # also of a name that no file can have
            pixels = None
        _require(pixels is not None and pixels.dtype == np.uint8, "file")
        # OpenCV also reads half a file.
        _require(b"\xff\xd9" in data.rstrip(b"\0")[-100:], "end of file")
        _require(pixels.ndim == 3 and min(pixels.shape[:2]) >= 8, "file")
        size = (image.get("width"), image.get("height"))
        _require(all(map(_is_number, size)) and size == pixels.shape[1::-1], "size")
        sizes[image["id"]] = size
    order = {i: k for k, i in enumerate(sorted(c["id"] for c in categories))}
    truth: dict[Any, set[tuple]] = {}
    ids, seen = set(), set()
    for a in annotations:
        _require(_is_id(a.get("id")) and a["id"] != 0 and a["id"] not in ids, "annotation id")
        ids.add(a["id"])
        for key in ("image_id", "category_id"):
            _require(_is_id(a.get(key)), key)
        _require(a["image_id"] in sizes and a["category_id"] in order, "references")
        box = a.get("bbox")
        _require(isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)), "box")
        (x, y, w, h), (width, height) = box, sizes[a["image_id"]]
        _require(w >= 0.5 and h >= 0.5 and x >= -1 and y >= -1, "box")
        _require(x + w <= width + 1 and y + h <= height + 1 and max(box) > 1, "box")
        _require(a.get("iscrowd", 0 if part == "train" else None) in (0, 1), "iscrowd")
        _require("ignore" not in a or a["ignore"] == 0, "ignore")
        points = a.get("keypoints") or []
        _require(isinstance(points, list) and all(map(_is_number, points)), "keypoints")
        _require(not a.get("segmentation"), "segmentation")
        if part == "val":
            _require(_is_number(a.get("area")) and a["area"] >= 0, "area")
            _require(a["area"] <= 1.1 * w * h + 4, "area")
            _require(a["area"] >= 0.001 * w * h or w * h <= 16, "area")
        key = (a["image_id"], a["category_id"], *box)
        _require(key not in seen, "twice")
        seen.add(key)
        if not a.get("iscrowd"):
            truth.setdefault(a["image_id"], set()).add(
                (order[a["category_id"]], *_clipped(box, width, height))
            )
    _require(bool(truth), "no objects")
    return truth, [name.strip().casefold() for name in names]


def _clipped(box: list, width: float, height: float) -> tuple[float, ...]:
    x, y, w, h = box
    corners = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return tuple(round(float(value), 1) for value in corners)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e30 and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return _is_number(value) and value == int(value) and abs(value) < 2**53


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Invalid(what)


def seen_boxes(inputs: list[dict]) -> dict[Any, set[tuple]]:
    """What the training sees, in the form of :func:`read_strictly`."""
    found = {}
    for x in inputs:
        boxes = x["instances"].gt_boxes.tensor.tolist()
        labels = x["instances"].gt_classes.tolist()
        found[x["image_id"]] = {
            (label, *(round(value, 1) for value in box)) for label, box in zip(labels, boxes)
        }
    return found


def try_one(folder: Path, seed: int) -> tuple[str, str]:
    """Tries one data set.

    Returns:
        The outcome, and what is wrong with it; "" if nothing.
    """
    rng = np.random.default_rng(seed)
    sample = Sample(folder / str(seed))
    changes = ", ".join(mutate(sample, rng))
    sample.write()
    try:
        truth, invalid = read_strictly(sample), ""
    except Invalid as error:
        truth, invalid = None, str(error)
    try:
        outcome, text, _ = check(sample)
        started, said, inputs = start_training(sample)
        if started == STOPS and outcome != STOPS:  # by pixels that were not read before
            outcome, text, _ = check(sample, "--full")
    except (Exception, SystemExit) as error:
        return "traceback", f"seed {seed}: {changes}: {type(error).__name__}: {error}"
    finally:
        shutil.rmtree(sample.folder, ignore_errors=True)
    fault = ""
    if "checking the data failed" in said:
        fault = f"a fault of ours: {said}"
    elif outcome != started:
        fault = f"check-dataset: {outcome} ({text[:300]}), training: {started} ({said[:300]})"
    elif outcome == FINE and truth is None:
        fault = f"nothing was said, but the oracle says: {invalid}"
    elif outcome == STOPS and truth is not None:
        fault = f"valid, but refused: {said}"
    elif outcome != STOPS and truth is not None and seen_boxes(inputs) != truth:
        fault = f"trains on other boxes: {seen_boxes(inputs)} instead of {truth}"
    elif outcome == STOPS and ("\n" in said or not said):
        fault = f"not a sentence: {said!r}"
    return outcome, f"seed {seed}: {changes}: {fault}" if fault else ""


def main(argv: list[str]) -> int:
    num, first = (*map(int, argv), *(500, 0)[len(argv) :])
    outcomes, faults = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, first + num):
            outcome, fault = try_one(Path(folder), seed)
            outcomes[outcome] += 1
            if fault:
                faults.append(fault)
                print(f"FAULT {fault}", flush=True)
    print(f"{num} data sets: {dict(outcomes)}; {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
