"""Checks the images of a data set in COCO format against their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from ..errors import DataError
from .checked import Checked, Finding


def check_images(checked: Checked, inspect: Callable) -> None:
    """Leaves out images that are unusable or contradict the JSON, and fills in sizes, in place.

    Args:
        checked: The data set; its ``files`` are set here.
        inspect: :func:`~atss_d2.data.custom.images.inspect_images`, or a test double.

    Raises:
        DataError: More than half of the images cannot be used.
    """
    source, entries = checked.source, {}
    place, root = source.place, source.image_root
    doubles, nameless = [], []
    for entry in checked.content["images"]:
        if not isinstance(entry.get("file_name"), str) or not isinstance(
            entry.get("id"), int | str
        ):
            nameless.append(f"id {entry.get('id')!r}")
        elif entry["id"] in entries:
            doubles.append(f"id {entry['id']} ({entry['file_name']})")
        else:
            entries[entry["id"]] = dict(entry)
    if not entries:
        raise DataError(f"'{place}': no image has a file_name and an id")
    checked.report(nameless, "image{s} {have} no file_name or no id", "left out", changes=True)
    checked.report(doubles, "image{s} {have} the id of another", "left out", changes=True)

    files = dict(zip(entries, inspect([root / e["file_name"] for e in entries.values()])))
    moved = _find_moved(root, {i: e["file_name"] for i, e in entries.items() if files[i].problem})
    checked.report(
        (f"'{entries[i]['file_name']}'" for i in moved),
        f"image{{s}} {{are}} found in '{root}' under another path than the JSON says",
        "file_name changed",
        changes=True,
    )
    for i, file in zip(moved, inspect([root / name for name in moved.values()])):
        files[i], entries[i]["file_name"] = file, moved[i]

    broken = {i: file.problem for i, file in files.items() if file.problem}
    sizeless = []
    for i, entry in entries.items():
        if i in broken:
            continue
        size = entry.get("width"), entry.get("height")
        if size == (None, None):
            entry["width"], entry["height"] = files[i].width, files[i].height
            sizeless.append(f"'{entry['file_name']}'")
        elif size != (files[i].width, files[i].height):
            broken[i] = "of another size"
    if source.json_file:
        checked.report(
            sizeless, "image{s} {have} no width and height", "taken from the files", changes=True
        )
    _refuse_most(checked, entries, files, broken)
    for problem in ("missing", "unreadable", "of another size"):
        cases = []
        for i in (i for i in broken if broken[i] == problem):
            case = f"'{entries[i]['file_name']}'"
            if problem == "of another size":
                file = files[i]
                case += f" ({file.width} x {file.height}, JSON: "
                case += f"{entries[i].get('width')} x {entries[i].get('height')})"
            cases.append(case)
        checked.report(cases, f"image{{s}} {{are}} {problem}", "left out", changes=True)
    checked.files = {i: file for i, file in files.items() if i not in broken}
    checked.content["images"] = [entries[i] for i in checked.files]
    seen = Counter(file.path for file in checked.files.values())
    checked.report(
        (f"'{path.name}'" for path, n in seen.items() if n > 1),
        "file{s} {are} named by several images",
    )
    modes = Counter(file.mode for file in checked.files.values())
    deep = [f"'{f.path.name}' ({f.mode})" for f in checked.files.values() if f.mode[0] in "IF"]
    checked.report(
        deep,
        "image{s} {have} more than 8 bits a channel",
        "convert them to 8 bits if you want to choose the range",
    )
    gray = sum(modes[mode] for mode in ("1", "L", "LA"))
    if gray:
        text = "image{s} {are} gray"
        text += ", all of them" if gray == len(checked.files) else ""
        checked.findings.append(Finding(gray, text, (), "read as three equal channels"))


def _find_moved(root: Path, names: dict[Any, str]) -> dict[Any, str]:
    """Finds files whose names were written on another machine.

    Their names may have leading folders that do not exist here, backslashes, or URL escapes.

    Args:
        root: Folder of the images.
        names: Names by image id, of files that are missing or unreadable.

    Returns:
        The names of files found under ``root``, by image id. If several images would get the same
        file, none does.
    """
    found: dict[Any, str] = {}
    for i, name in names.items():
        parts = PurePosixPath(name.replace("\\", "/")).parts
        tails = [
            "/".join(parts[start:]) for start in range(len(parts)) if ".." not in parts[start:]
        ]
        tails = [
            tail for part in tails for tail in (part, unquote(part)) if tail.lstrip("/") == tail
        ]
        tail = next((tail for tail in tails if tail != name and (root / tail).is_file()), None)
        if tail is not None:
            found[i] = tail
    uses = Counter(found.values())
    return {i: tail for i, tail in found.items() if uses[tail] == 1}


def _refuse_most(checked: Checked, entries: dict, files: dict, broken: dict) -> None:
    """Raises if more than half of the images cannot be used."""
    if 2 * len(broken) <= len(entries):
        return
    problem, num = Counter(broken.values()).most_common(1)[0]
    first = next(i for i in broken if broken[i] == problem)
    text = f"{num} of {len(entries)} images of '{checked.source.place}' are "
    if problem == "missing":
        text += f"missing in '{checked.source.image_root}', e.g. '{entries[first]['file_name']}': "
        raise DataError(text + "is it the right folder?")
    if problem == "unreadable":
        raise DataError(text + f"unreadable, e.g. '{files[first].path}': are they images?")
    sizes = [(entries[i].get("height"), entries[i].get("width")) for i in broken]
    is_turned = sizes == [(files[i].width, files[i].height) for i in broken]
    fix = (
        "the JSON does not know that their EXIF data turn them; remove the tag Orientation from "
        "the files"
        if is_turned
        else "were they resized?"
    )
    raise DataError(
        text + f"not of the size that the JSON says, e.g. '{entries[first]['file_name']}': "
        f"{files[first].width} x {files[first].height} pixels, in the JSON "
        f"{entries[first].get('width')} x {entries[first].get('height')}; {fix}"
    )
