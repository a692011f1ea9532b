"""Reads a COCO JSON file, and says what a file is that is none."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..json_stream import JsonStream, Unusual, read_arrays
from .columns import Annotations, Content, Images

KEYS = ("images", "annotations", "categories")
_KINDS = {"images": Images, "annotations": Annotations, "categories": list}
_MAX_PARSED = 1 << 30  # bytes of a file that may be held as Python objects, seven times as large
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass
class JsonContent:
    """The content of a JSON file.

    Args:
        content: The top level; or ``Content``, if the file was read piece by piece.
        has_byte_order_mark: Whether the file starts with one. Detectron2 then cannot read it.
        num_nan: Number of ``NaN`` and ``Infinity``, which are not JSON although Python reads them.
    """

    content: Any
    has_byte_order_mark: bool = False
    num_nan: int = 0


def read_json(path: str | os.PathLike[str]) -> JsonContent:
    """Reads a JSON file whose top level is a dict in COCO's format.

    Raises:
        DataError: The file cannot be read, or is something else; one sentence says what.
    """
    file = parse_json(path)
    if not isinstance(file.content, dict):
        raise DataError(f"'{path}' {_other_top_level(file.content)}")
    other = _other_format(file.content)
    if other:
        raise DataError(f"'{path}' {other}")
    return file


def read_columns(path: str | os.PathLike[str]) -> JsonContent:
    """Reads a JSON file in COCO's format piece by piece, so that it does not need to fit in memory.

    Raises:
        Unusual: The file cannot be read, or one of the three lists is missing or empty, or it is
            something else.
    """
    lists, num_constants = _read_lists(path, _KINDS)
    for key in KEYS:
        if not len(lists[key]):
            raise Unusual(f"has no {key}")
    if not set(map(type, lists["categories"])) <= {dict}:
        raise Unusual("has a category that is not an object with keys")
    with open(path, "rb") as file:
        has_mark = file.read(len(_BYTE_ORDER_MARK)) == _BYTE_ORDER_MARK
    return JsonContent(Content(**lists), has_mark, num_constants)


def read_value(path: str | os.PathLike[str], key: str) -> Any:
    """Reads one value of a JSON file's object, piece by piece if it is a list.

    Returns:
        The value; None if there is none, or the file has no object.

    Raises:
        DataError: The file cannot be read, or is not JSON; one sentence says what it is.
    """
    try:
        return _read_lists(path, {key: list})[0][key]
    except Unusual as error:
        require_small(path, error)
    content = parse_json(path).content
    return content.get(key) if isinstance(content, dict) else None


def require_small(path: str | os.PathLike[str], error: Unusual) -> None:
    """Checks that a file fits into memory which cannot be read piece by piece.

    Raises:
        DataError: It does not; the message says why it cannot.
    """
    with contextlib.suppress(OSError, ValueError):
        if os.path.getsize(path) > _MAX_PARSED:
            raise DataError(f"'{path}' is not COCO JSON: it {error}")


def _read_lists(
    path: str | os.PathLike[str], kinds: dict[str, Callable[[Iterator[Any]], Any]]
) -> tuple[dict[str, Any], int]:
    """Returns the lists of some keys, as their kind makes them, and the number of NaN literals."""
    lists: dict[str, Any] = {}

    def taker(key: str) -> Callable[[Iterator[Any]], None]:
        return lambda elements: lists.update({key: kinds[key](elements)})

    try:
        with open(path, encoding="utf-8-sig") as file, _without_collector():
            stream = JsonStream(file)
            read_arrays(stream, {key: taker(key) for key in kinds})
    except (OSError, ValueError, RecursionError) as error:
        raise Unusual(f"cannot be read: {error}") from None
    return lists, stream.num_constants


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Spares the search for circles among millions of values, which takes as long as decoding."""
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


def parse_json(path: str | os.PathLike[str]) -> JsonContent:
    """Reads a JSON file of any content.

    Raises:
        DataError: The file cannot be read, or is not JSON; one sentence says what it is.
    """
    place = f"'{path}'"
    try:
        data = Path(path).read_bytes()
    except IsADirectoryError:
        raise DataError(f"{place} is a folder, not a JSON file: give the file in it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {place}: {getattr(error, 'strerror', error)}") from None
    if not data.strip(b"\0 \r\n\t"):
        raise DataError(f"{place} is not a JSON file: it is empty, write or copy it again")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise DataError(f"{place} is not a JSON file in UTF-8: it is UTF-16 or binary")
    literals: list[str] = []

    def count(literal: str) -> float:
        literals.append(literal)
        return float(literal)

    try:
        has_mark = data.startswith(_BYTE_ORDER_MARK)
        text = data.decode("utf-8-sig")
        del data  # hundreds of megabytes
        with _without_collector():
            content = json.loads(text, parse_constant=count)
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not a JSON file, its text is not UTF-8: {error}") from None
    except RecursionError:
        raise DataError(f"{place} is nested too deeply for COCO's format") from None
    except ValueError as error:
        raise DataError(f"{place} is not a JSON file: {_cause(text, error)}") from None
    return JsonContent(content, has_mark, len(literals))


def _cause(text: str, error: ValueError) -> str:
    is_open = str(error).startswith("Unterminated string") and '"' not in text[error.pos + 1 :]
    if is_open or getattr(error, "pos", 0) >= len(text.rstrip()) - 1:
        return f"it ends in the middle of it, write or copy it again ({error})"
    start = text[:200].lstrip().lower()
    if start.startswith(("<!doctype", "<html")):
        return "it is a web page, download it again"
    if start.startswith("<"):
        return "it is XML, give the folder instead if this is Pascal VOC"
    if start.startswith("version https://git-lfs"):
        return "it is a pointer of Git LFS, run git lfs pull"
    if str(error).startswith("Extra data") and start.startswith("{"):
        return f"it holds several values, like JSON lines ({error})"
    return str(error)


def _other_top_level(content: Any) -> str:
    expected = "not COCO's object of images, annotations and categories"
    what = "a list" if isinstance(content, list) else f"a {type(content).__name__}"
    first = content[0] if isinstance(content, list) and content else None
    if isinstance(first, dict) and {"score", "bbox"} <= set(first):
        return f"is a file of results, a list of detections, {expected}: give the annotations"
    return f"holds {what}, {expected}: is it a file of results?"


def _other_format(content: dict[str, Any]) -> str:
    if any(key in content for key in KEYS):
        return ""
    if content.get("type") in ("FeatureCollection", "Feature"):
        return "is GeoJSON, not COCO's format: convert its boxes to pixels"
    if "shapes" in content and "imagePath" in content:
        return "is a file of labelme about one image, not COCO's format: convert the files"
    if "_via_img_metadata" in content:
        return "is a project of VIA, not COCO's format: export it as COCO"
    keys = ", ".join(map(repr, list(content)[:5])) or "none"
    return f"is not in COCO's format: it has the keys {keys}, not {', '.join(KEYS)}"
