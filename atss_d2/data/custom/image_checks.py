"""Checks the images of a data set in COCO format against their files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from ..checks.copies import check_copies
from ..checks.findings import KINDS, Report, inflect
from ..checks.images import UNUSABLE, check_files, find_moved
from ..checks.values import to_numbers
from ..errors import DataError
from .checked import Checked


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
    checked.report(nameless, "image_entry", "left out", changes=True)
    checked.report(doubles, "image_id_double", "left out", changes=True)

    files = dict(zip(entries, inspect([root / e["file_name"] for e in entries.values()])))
    moved = find_moved(root, {i: e["file_name"] for i, e in entries.items() if files[i].problem})
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
            broken[i] = "image_size"
    if source.json_file:
        checked.report(sizeless, "image_size_missing", "taken from the files", changes=True)
    _refuse_most(checked, entries, files, broken)
    found = Report(place)
    chosen = list(files)
    check_files(
        found,
        [entries[i]["file_name"] for i in chosen],
        [files[i].probe for i in chosen],
        sizes=[_size(entries[i]) for i in chosen],
        image_ids=chosen,
    )
    for finding in found.findings:
        is_fatal = finding.code in (*UNUSABLE, "image_size")
        checked.findings.append(replace(finding, action="left out") if is_fatal else finding)
    checked.is_changed |= bool(broken)
    checked.files = {i: file for i, file in files.items() if i not in broken}
    checked.content["images"] = [entries[i] for i in checked.files]
    check_copies(
        found := Report(place),
        [file.path.name for file in checked.files.values()],
        [str(file.path) for file in checked.files.values()],
        [file.probe for file in checked.files.values()],
    )
    checked.findings += found.findings


def _size(entry: dict) -> tuple[float, float]:
    return tuple(to_numbers([entry.get("width"), entry.get("height")]))


def _refuse_most(checked: Checked, entries: dict, files: dict, broken: dict) -> None:
    """Raises if more than half of the images cannot be used."""
    if 2 * len(broken) <= len(entries):
        return
    problem, num = Counter(broken.values()).most_common(1)[0]
    first = next(i for i in broken if broken[i] == problem)
    text = f"{num} of {len(entries)} images of '{checked.source.place}' are "
    if problem == "image_missing":
        text += f"missing in '{checked.source.image_root}', e.g. '{entries[first]['file_name']}': "
        raise DataError(text + "is it the right folder?")
    if problem != "image_size":
        what = inflect(KINDS[problem].what, 2).removeprefix("images are ")
        raise DataError(f"{text}{what}, e.g. '{files[first].path}': are they images?")
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
