"""A catalogue of what happens to data sets, each a change of a small good one.

Every case says what must come of it, in ``check-dataset`` and in training alike: training stops
before the first iteration with a sentence, or it trains after a warning, or nothing is wrong.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

STOPS, WARNS, FINE = "stops", "warns", "fine"
CATEGORIES = ({"id": 3, "name": "bright"}, {"id": 7, "name": "dark"})
_NUM = {"train": 8, "val": 4}


class Sample:
    """A training and a validation set, to be changed before they are written.

    Attributes:
        folder: Where they are.
        content: COCO's dict by part, "train" and "val".
        raw: Bytes that are written instead of the dict, by part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content = {part: _draw(folder / part, num) for part, num in _NUM.items()}
        self.raw: dict[str, bytes] = {}

    def file(self, part: str, index: int = 0) -> Path:
        """The path of an image."""
        return self.folder / part / self.content[part]["images"][index]["file_name"]

    def json_file(self, part: str) -> Path:
        return self.folder / f"{part}.json"

    def write(self) -> Sample:
        for part, content in self.content.items():
            data = self.raw.get(part)
            if data is None:
                data = json.dumps(content).encode()
            if not self.json_file(part).exists():
                self.json_file(part).write_bytes(data)
        return self

    def move(self, part: str, index: int, name: str, *, said: str | None = None) -> None:
        """Renames an image; ``said`` is the name in the JSON if it is another."""
        path = self.folder / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file(part, index).rename(path)
        self.content[part]["images"][index]["file_name"] = name if said is None else said

    def replace(self, part: str, index: int, suffix: str, save: Callable[[Path], None]) -> None:
        """Writes an image with another suffix in the place of one."""
        self.file(part, index).unlink()
        name = f"{part}{index}{suffix}"
        self.content[part]["images"][index]["file_name"] = name
        save(self.folder / part / name)


def _draw(folder: Path, num: int) -> dict[str, Any]:
    folder.mkdir(parents=True)
    images, annotations = [], []
    for i in range(num):
        rng = np.random.default_rng([len(folder.name), i])
        height, width = (72, 96) if i % 2 else (96, 64)
        pixels = rng.integers(100, 150, (height, width, 3)).astype(np.uint8)
        pixels = cv2.resize(pixels[::8, ::8], (width, height))
        for k in range(2):
            side = int(rng.integers(18, 28))
            x, y = int(rng.integers(1, width - side)), 4 + k * (height // 2)
            label = (i + k) % 2
            pixels[y : y + side, x : x + side] = 20 if label else 235
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + i,
                    "category_id": CATEGORIES[label]["id"],
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        name = f"{i:03d}.jpg"
        cv2.imwrite(str(folder / name), pixels)
        images.append({"id": 10 + i, "file_name": name, "height": height, "width": width})
    return {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": copy.deepcopy(list(CATEGORIES)),
    }


@dataclass(frozen=True)
class Case:
    """A change and what must come of it.

    Args:
        change: Changes a sample before it is written.
        outcome: ``STOPS``, ``WARNS`` or ``FINE``.
        says: Pattern of the sentence or warning.
        trains: Whether training is tried, too; some data would take too long.
    """

    change: Callable[[Sample], Any]
    outcome: str
    says: str = ""
    trains: bool = field(default=True, kw_only=True)


# Changes, made by functions that take what is special


def _annotation(index: int = 0, part: str = "train", **values: Any) -> Callable[[Sample], None]:
    return lambda s: s.content[part]["annotations"][index].update(values)


def _annotations(part: str = "train", **values: Any) -> Callable[[Sample], None]:
    return lambda s: [a.update(values) for a in s.content[part]["annotations"]]


def _without(key: str, part: str = "train", index: int = 0) -> Callable[[Sample], None]:
    return lambda s: s.content[part]["annotations"][index].pop(key)


def _image(index: int = 0, part: str = "train", **values: Any) -> Callable[[Sample], None]:
    return lambda s: s.content[part]["images"][index].update(values)


def _key(key: str, value: Any, part: str = "train") -> Callable[[Sample], None]:
    return lambda s: s.content[part].update({key: value})


def _no_key(key: str, part: str = "train") -> Callable[[Sample], None]:
    return lambda s: s.content[part].pop(key)


def _json(data: bytes | Callable[[bytes], bytes], part: str = "train") -> Callable[[Sample], None]:
    def change(s: Sample) -> None:
        text = json.dumps(s.content[part]).encode()
        s.raw[part] = data(text) if callable(data) else data

    return change


def _bytes(data: bytes | Callable[[bytes], bytes], part: str = "train") -> Callable[[Sample], None]:
    def change(s: Sample) -> None:
        path = s.file(part)
        path.write_bytes(data(path.read_bytes()) if callable(data) else data)

    return change


def _saved(
    mode: str, suffix: str = ".png", part: str = "train", **options: Any
) -> Callable[[Sample], None]:
    def change(s: Sample) -> None:
        with Image.open(s.file(part)) as image:
            image.load()
        if mode == "I;16":
            values = np.asarray(image.convert("L")).astype(np.uint16) * 250
            image = Image.fromarray(values)
        elif mode == "F":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255)
        else:
            image = image.convert(mode)
        s.replace(part, 0, suffix, lambda path: image.save(path, **options))

    return change


def _turned(orientation: int, *, is_known: bool) -> Callable[[Sample], None]:
    def change(s: Sample) -> None:
        path, entry = s.file("train"), s.content["train"]["images"][0]
        with Image.open(path) as image:
            image.load()
        exif = image.getexif()
        exif[0x0112] = orientation
        if is_known and orientation == 6:  # stored turned back, so that it is shown as before
            image = image.transpose(Image.Transpose.ROTATE_90)
        image.save(path, exif=exif)
        assert (entry["width"], entry["height"]) == (64, 96)

    return change


def _drawn(width: int, height: int, suffix: str = ".png") -> Callable[[Sample], None]:
    """Another image, of one color, without objects in it."""

    def change(s: Sample) -> None:
        image = Image.new("L" if width * height > 1e6 else "RGB", (width, height))
        s.replace("train", 0, suffix, image.save)
        s.content["train"]["images"][0].update(width=width, height=height)
        kept = [a for a in s.content["train"]["annotations"] if a["image_id"] != 10]
        box = [0, 0, width, height]
        kept.append({**kept[0], "id": 900, "image_id": 10, "bbox": box, "area": width * height})
        s.content["train"]["annotations"] = kept

    return change


def _bomb(s: Sample) -> None:
    """A PNG whose header says 20,000 x 20,000 pixels."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    s.replace("train", 0, ".png", lambda path: path.write_bytes(data))


def _boxes(part: str, new: Callable[..., list], every: int = 1) -> Callable[[Sample], None]:
    def change(s: Sample) -> None:
        sizes = {x["id"]: (x["width"], x["height"]) for x in s.content[part]["images"]}
        for a in s.content[part]["annotations"][::every]:
            a["bbox"] = new(*a["bbox"], *sizes[a["image_id"]])

    return change


def _corners(x, y, w, h, *_):
    return [x, y, x + w, y + h]


def _centers(x, y, w, h, width, height):
    return [0.6 * width, 0.5 * height + y / 50, 0.5 * width, 0.9 * height]


def _fractions(x, y, w, h, width, height):
    return [x / width, y / height, w / width, h / height]


def _append_image(part: str = "train", **values: Any) -> Callable[[Sample], None]:
    return lambda s: s.content[part]["images"].append({**s.content[part]["images"][0], **values})


def _copy_to_val(s: Sample) -> None:
    shutil.copy(s.file("train", 2), s.file("val", 0))
    entry = s.content["train"]["images"][2]
    s.content["val"]["images"][0].update(width=entry["width"], height=entry["height"])


def _other_ids(part: str, new: Callable[[int], Any], *, of: str) -> Callable[[Sample], None]:
    """Replaces the ids of images or classes everywhere."""
    key, entries = {"image": ("image_id", "images"), "class": ("category_id", "categories")}[of]

    def change(s: Sample) -> None:
        for entry in s.content[part][entries]:
            entry["id"] = new(entry["id"])
        for a in s.content[part]["annotations"]:
            a[key] = new(a[key])

    return change


def _link(target: Callable[[Path], Path | str]) -> Callable[[Sample], None]:
    def change(s: Sample) -> None:
        path = s.file("train")
        moved = path.rename(s.folder / "elsewhere.jpg")
        path.symlink_to(target(moved))

    return change


def _make(make: Callable[[Path], Any]) -> Callable[[Sample], None]:
    def change(s: Sample) -> None:
        path = s.file("train")
        path.unlink()
        make(path)

    return change


def _make_json_folder(s: Sample) -> None:
    s.json_file("train").mkdir()


def _copy_twice(s: Sample) -> None:
    shutil.copy(s.file("train"), s.folder / "train" / "copy.jpg")
    s.content["train"]["images"].append(
        {**s.content["train"]["images"][0], "id": 99, "file_name": "copy.jpg"}
    )


def _both(*changes: Callable[[Sample], Any]) -> Callable[[Sample], None]:
    return lambda s: [change(s) for change in changes]


_HTML = b"<!DOCTYPE html><html><body>403 Forbidden</body></html>"
_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
_NFD = unicodedata.normalize("NFD", "blüte.jpg")
_HALF = slice(0, 900)
_NOT_FOUR = r"1 box is not four finite numbers"
_ALL_NOT_FOUR = r"16 boxes are not four finite numbers"
_RING = [[4, 4, 20, 4, 20, 20, 4, 20]]

CASES: dict[str, Case] = {
    "good": Case(lambda s: None, FINE),
    # Files
    "file missing": Case(lambda s: s.file("train").unlink(), STOPS, "1 image is missing"),
    "file missing in val": Case(lambda s: s.file("val").unlink(), STOPS, "1 image is missing"),
    "all files missing": Case(
        lambda s: shutil.rmtree(s.folder / "train") or (s.folder / "train").mkdir(),
        STOPS,
        "8 images are missing",
    ),
    "file empty": Case(_bytes(b""), STOPS, "1 image file is empty"),
    "file empty in val": Case(_bytes(b"", "val"), STOPS, "1 image file is empty"),
    "file is a web page": Case(_bytes(_HTML), STOPS, "1 image file is a web page or text"),
    "file is a pointer of Git LFS": Case(_bytes(_LFS), STOPS, "git lfs pull"),
    "file is text": Case(_bytes(b"0 0.5 0.5 0.1 0.1\n" * 9), STOPS, "1 image is unreadable"),
    "file is random bytes": Case(_bytes(bytes(range(256)) * 9), STOPS, "1 image is unreadable"),
    "jpeg truncated": Case(_bytes(lambda x: x[_HALF]), STOPS, "1 image is truncated"),
    "jpeg truncated in val": Case(_bytes(lambda x: x[_HALF], "val"), STOPS, "1 image is truncated"),
    "jpeg truncated, then zeros": Case(
        _bytes(lambda x: x[_HALF] + bytes(9000)), STOPS, "1 image is truncated"
    ),
    "jpeg with padding": Case(_bytes(lambda x: x + bytes(9000)), FINE),
    "png truncated": Case(
        _both(_saved("RGB"), _bytes(lambda x: x[: len(x) // 2])), STOPS, "1 image is truncated"
    ),
    "webp truncated": Case(
        _both(_saved("RGB", ".webp"), _bytes(lambda x: x[: len(x) // 2])),
        STOPS,
        "1 image is truncated",
    ),
    "bmp truncated": Case(
        _both(_saved("RGB", ".bmp"), _bytes(lambda x: x[: len(x) // 2])),
        STOPS,
        "1 image is truncated",
    ),
    "tiff truncated": Case(
        _both(_saved("RGB", ".tif"), _bytes(lambda x: x[: len(x) // 2])),
        STOPS,
        "1 image is (truncated|unreadable)",
    ),
    "file is a folder": Case(_make(Path.mkdir), STOPS, "1 image is a folder or another thing"),
    "file is a pipe": Case(_make(os.mkfifo), STOPS, "1 image is a folder or another thing"),
    "link to a file": Case(_link(lambda path: path), FINE),
    "link to nothing": Case(_link(lambda path: "gone.jpg"), STOPS, "symbolic link to 'gone.jpg'"),
    "link to itself": Case(_link(lambda path: "000.jpg"), STOPS, "1 image is missing"),
    "gray": Case(_saved("L"), WARNS, "1 image is gray"),
    "one bit": Case(_saved("1"), WARNS, "1 image is gray"),
    "gray with alpha": Case(_saved("LA"), WARNS, "1 image has transparency"),
    "rgba": Case(_saved("RGBA"), WARNS, "1 image has transparency"),
    "cmyk": Case(_saved("CMYK", ".jpg"), WARNS, "1 image is in CMYK"),
    "palette": Case(_saved("P"), WARNS, "1 image has a palette"),
    "palette with transparency": Case(
        _saved("P", transparency=0), WARNS, "1 image has transparency"
    ),
    "16 bit": Case(_saved("I;16"), WARNS, "1 image has more than 8 bits a channel.*I;16"),
    "float": Case(_saved("F", ".tif"), WARNS, "1 image has more than 8 bits a channel"),
    "lab": Case(_saved("LAB", ".tif"), WARNS, "1 image has an unusual color mode"),
    "png named jpg": Case(_saved("RGB", ".jpg", format="PNG"), FINE),
    "exif turns, json does not know": Case(
        _turned(6, is_known=False), STOPS, "of another size.*96 x 64, JSON: 64 x 96.*EXIF"
    ),
    "exif turns, json knows": Case(_turned(6, is_known=True), WARNS, "1 image is turned by EXIF"),
    "exif upside down": Case(_turned(3, is_known=True), WARNS, "1 image is turned by EXIF"),
    "sizes swapped": Case(_image(width=96, height=64), STOPS, "are swapped"),
    "size off by one": Case(_image(width=65), STOPS, "1 image is of another size"),
    "size off by one in val": Case(_image(0, "val", height=97), STOPS, "1 image is of another"),
    "size as text": Case(_image(width="64"), STOPS, "1 image has no width and height"),
    "size zero": Case(_image(width=0), STOPS, "1 image has no width and height"),
    "size missing": Case(
        lambda s: s.content["train"]["images"][0].pop("width"), STOPS, "no width and height"
    ),
    "size NaN": Case(_image(width=math.nan), STOPS, "1 image has no width and height"),
    "size as float": Case(_image(width=64.0, height=96.0), FINE),
    "one pixel": Case(_drawn(1, 1), WARNS, "1 image has a side of less than 8 pixels"),
    "a thousand times as long as wide": Case(_drawn(2000, 2), STOPS, "500 times as long as wide"),
    "huge": Case(_drawn(9500, 9500), WARNS, "more than 89 million pixels", trains=False),
    "decompression bomb": Case(_bomb, STOPS, "1 image has more pixels than Pillow reads"),
    # Names
    "name with backslashes": Case(
        lambda s: s.move("train", 0, "a/b.jpg", said="a\\b.jpg"), STOPS, r"'a/b.jpg' for 'a\\b.jpg'"
    ),
    "name with a folder too many": Case(
        _image(file_name="train2017/000.jpg"), STOPS, "'000.jpg' for 'train2017/000.jpg'"
    ),
    "name in other capitals": Case(_image(file_name="000.JPG"), STOPS, "'000.jpg' for '000.JPG'"),
    "name with other accents": Case(
        lambda s: s.move("train", 0, _NFD, said="blüte.jpg"), STOPS, "under another name"
    ),
    "name is a url": Case(_image(file_name="http://x.org/000.jpg"), STOPS, "'000.jpg' for 'http"),
    "name absolute": Case(lambda s: _image(file_name=str(s.file("train")))(s), FINE),
    "name in unicode": Case(lambda s: s.move("train", 0, "Bäume 木.jpg"), FINE),
    "name with spaces": Case(lambda s: s.move("train", 0, "a b/ c d.jpg"), FINE),
    "name with a null byte": Case(_image(file_name="a\0b.jpg"), STOPS, "1 image is missing"),
    "name empty": Case(_image(file_name=""), STOPS, "1 image has no file_name or no id"),
    "name missing": Case(_image(file_name=None), STOPS, "1 image has no file_name or no id"),
    "name is a number": Case(_image(file_name=12), STOPS, "1 image has no file_name or no id"),
    "name very long": Case(_image(file_name="x" * 5000), STOPS, "1 image is missing"),
    "file named twice": Case(_append_image(id=99), WARNS, "1 file is named by several images"),
    "file copied": Case(_copy_twice, WARNS, "1 image has the content of another"),
    "image in train and val": Case(_copy_to_val, WARNS, "1 image is also in train"),
    # Boxes
    "box NaN": Case(_annotation(bbox=[4, 4, math.nan, 9]), STOPS, _NOT_FOUR),
    "box infinite": Case(_annotation(bbox=[4, 4, math.inf, 9]), STOPS, _NOT_FOUR),
    "box minus infinite": Case(_annotation(bbox=[-math.inf, 4, 9, 9]), STOPS, _NOT_FOUR),
    "box too large for a float": Case(_annotation(bbox=[4, 4, 10**400, 9]), STOPS, _NOT_FOUR),
    "box beyond 64 bits": Case(_annotation(bbox=[4, 2**63, 9, 9]), STOPS, _NOT_FOUR),
    "box of three": Case(_annotation(bbox=[4, 4, 9]), STOPS, _NOT_FOUR),
    "box of five": Case(_annotation(bbox=[4, 4, 9, 9, 30]), STOPS, _NOT_FOUR),
    "box empty": Case(_annotation(bbox=[]), STOPS, _NOT_FOUR),
    "box of text": Case(_annotation(bbox=["4", "4", "9", "9"]), STOPS, _NOT_FOUR),
    "box is text": Case(_annotation(bbox="4 4 9 9"), STOPS, _NOT_FOUR),
    "box is a dict": Case(_annotation(bbox={"x": 4, "y": 4, "w": 9, "h": 9}), STOPS, _NOT_FOUR),
    "box with null": Case(_annotation(bbox=[4, None, 9, 9]), STOPS, _NOT_FOUR),
    "box missing": Case(_without("bbox"), STOPS, _NOT_FOUR),
    "box nested": Case(_annotation(bbox=[[4, 4, 9, 9]]), STOPS, _NOT_FOUR),
    "box NaN in val": Case(_annotation(0, "val", bbox=[4, 4, math.nan, 9]), STOPS, _NOT_FOUR),
    "box of text in val": Case(_annotation(0, "val", bbox=["4"] * 4), STOPS, _NOT_FOUR),
    "boxes all NaN": Case(_annotations(bbox=[math.nan] * 4), STOPS, _ALL_NOT_FOUR),
    "box negative": Case(_annotation(bbox=[40, 4, -9, 9]), STOPS, "1 box has a negative width"),
    "box negative in val": Case(
        _annotation(0, "val", bbox=[40, 4, 9, -9]), STOPS, "1 box has a negative width or height"
    ),
    "box without area": Case(_annotation(bbox=[4, 4, 0, 9]), WARNS, "1 box has no area"),
    "box without area in val": Case(
        _annotation(0, "val", bbox=[4, 4, 0, 9], area=0), WARNS, "1 box has no area"
    ),
    "boxes all without area": Case(_annotations(bbox=[4, 4, 0, 0]), STOPS, "16 boxes have no area"),
    "box of a hundredth of a pixel": Case(
        _annotation(bbox=[8, 8, 0.01, 0.01]), WARNS, "1 box has a side of less than half a pixel"
    ),
    "box outside": Case(_annotation(bbox=[900, 4, 9, 9]), WARNS, "1 box is outside of the image"),
    "box partly outside": Case(_annotation(bbox=[-9, 4, 30, 9]), WARNS, "1 box is partly outside"),
    "boxes all outside": Case(
        _annotations(bbox=[900, 4, 9, 9]), STOPS, "16 boxes are outside of the image"
    ),
    "boxes are corners": Case(_boxes("train", _corners), STOPS, "seem to be x1, y1, x2, y2"),
    "boxes are corners in val": Case(_boxes("val", _corners), STOPS, "seem to be x1, y1, x2, y2"),
    "some boxes are corners": Case(
        _boxes("train", _corners, 3), WARNS, "but would fit as x1, y1, x2, y2"
    ),
    "boxes are centers": Case(_boxes("train", _centers), STOPS, "seem to be center x"),
    "boxes are fractions": Case(_boxes("train", _fractions), STOPS, "16 boxes have values up to 1"),
    "one box is a fraction": Case(
        _annotation(bbox=[0.1, 0.1, 0.5, 0.5]), WARNS, "1 box has values up to 1"
    ),
    "boxes scaled": Case(
        _boxes("train", lambda *b: [4 * x for x in b[:4]]), STOPS, "outside of the image"
    ),
    "box twice": Case(
        lambda s: s.content["train"]["annotations"].append(
            {**s.content["train"]["annotations"][0], "id": 77}
        ),
        WARNS,
        "1 annotation has the class and box of another",
    ),
    # Ids
    "annotation id twice": Case(_annotation(1, id=1), STOPS, "1 annotation has the id of another"),
    "annotation id twice in val": Case(
        _annotation(1, "val", id=1), STOPS, "1 annotation has the id of another"
    ),
    "annotation id missing": Case(_without("id"), STOPS, "1 annotation has no id"),
    "annotation id null": Case(_annotation(id=None), STOPS, "1 annotation has no id"),
    "annotation id a list": Case(_annotation(id=[1]), STOPS, "1 annotation has no id"),
    "annotation id 0": Case(_annotation(id=0), WARNS, "1 annotation has the id 0"),
    "annotation id 0 in val": Case(_annotation(0, "val", id=0), STOPS, "has the id 0"),
    "annotation ids as text": Case(
        lambda s: [a.update(id=f"a{a['id']}") for a in s.content["train"]["annotations"]],
        WARNS,
        "16 annotation ids are not an integer",
    ),
    "annotation ids as text in val": Case(
        lambda s: [a.update(id=f"a{a['id']}") for a in s.content["val"]["annotations"]],
        STOPS,
        "8 annotation ids are not an integer",
    ),
    "annotation id a fraction in val": Case(
        _annotation(0, "val", id=0.5), STOPS, "1 annotation id is not an integer"
    ),
    "annotation ids all NaN": Case(_annotations(id=math.nan), STOPS, "16 annotations have no id"),
    "annotation id beyond 64 bits": Case(
        _annotation(0, "val", id=10**400), STOPS, "1 annotation id is not an integer"
    ),
    "image id beyond 64 bits": Case(_image(id=2**63), STOPS, "1 image id is of another type"),
    "iscrowd -1": Case(_annotation(iscrowd=-1), STOPS, "an iscrowd other than 0 or 1"),
    "image id twice": Case(_image(1, id=10), STOPS, "1 image has the id of another"),
    "image id twice in val": Case(_image(1, "val", id=10), STOPS, "1 image has the id of another"),
    "image id missing": Case(_image(id=None), STOPS, "1 image has no file_name or no id"),
    "image id a list": Case(_image(id=[10]), STOPS, "1 image id is of another type"),
    "image id a boolean": Case(_image(id=True), STOPS, "1 image id is of another type"),
    "image id a fraction": Case(_image(id=1.5), STOPS, "1 image id is of another type"),
    "one image id as text": Case(_image(id="10"), STOPS, "1 image id is of another type"),
    "image ids as text": Case(_other_ids("train", str, of="image"), WARNS, "8 image ids are text"),
    "image ids as text in val": Case(
        _other_ids("val", str, of="image"), WARNS, "4 image ids are text"
    ),
    "image ids as floats": Case(_other_ids("train", float, of="image"), FINE),
    "image ids as text in images only": Case(
        lambda s: [x.update(id=str(x["id"])) for x in s.content["train"]["images"]],
        STOPS,
        "16 annotations are of images that .*of type int.*of type str",
    ),
    "annotation of an unknown image": Case(
        _annotation(image_id=999), WARNS, "1 annotation is of images that the file does not list"
    ),
    "annotation of no image": Case(
        _without("image_id"), STOPS, "1 annotation has no image_id, or one"
    ),
    "annotation of a list of images": Case(
        _annotation(image_id=[10]), STOPS, "1 annotation has no image_id, or one"
    ),
    "annotations of unknown images": Case(
        _annotations(image_id=999), STOPS, "16 annotations are of images that the file does not"
    ),
    "class unknown": Case(_annotation(category_id=5), STOPS, "1 annotation is of classes that"),
    "class unknown in val": Case(
        _annotation(0, "val", category_id=5), STOPS, "1 annotation is of classes that"
    ),
    "class missing": Case(_without("category_id"), STOPS, "1 annotation is of classes that"),
    "class a list": Case(_annotation(category_id=[3]), STOPS, "1 annotation is of classes that"),
    "class as text": Case(_annotation(category_id="3"), STOPS, "of classes that.*category_id '3'"),
    "classes as text": Case(
        lambda s: [
            a.update(category_id=str(a["category_id"])) for a in s.content["train"]["annotations"]
        ],
        STOPS,
        "of classes that.*of type str.*of type int",
    ),
    "class as a float": Case(_annotation(category_id=3.0, bbox=[8, 8, 20, 20]), FINE),
    "class from 0": Case(
        lambda s: [
            a.update(category_id=a["category_id"] // 7) for a in s.content["train"]["annotations"]
        ],
        STOPS,
        "16 annotations are of classes that",
    ),
    # Keys
    "ignore": Case(_annotation(ignore=1), STOPS, "1 annotation has the key ignore"),
    "ignore null": Case(_annotation(ignore=None), STOPS, "1 annotation has the key ignore"),
    "ignore 0": Case(_annotation(ignore=0), FINE),
    "iscrowd as text": Case(_annotation(iscrowd="0"), STOPS, "an iscrowd other than 0 or 1"),
    "iscrowd null": Case(_annotation(iscrowd=None), STOPS, "an iscrowd other than 0 or 1"),
    "iscrowd 2": Case(_annotation(0, "val", iscrowd=2), STOPS, "an iscrowd other than 0 or 1"),
    "iscrowd true": Case(_annotation(iscrowd=True), FINE),
    "iscrowd missing": Case(_without("iscrowd"), FINE),
    "iscrowd missing in val": Case(
        _without("iscrowd", "val"), STOPS, "1 annotation has no iscrowd"
    ),
    "iscrowd everywhere": Case(
        _annotations(iscrowd=1), STOPS, "16 annotations are iscrowd regions"
    ),
    "area missing": Case(_without("area"), FINE),
    "area missing in val": Case(_without("area", "val"), STOPS, "1 annotation has no area"),
    "area negative in val": Case(
        _annotation(0, "val", area=-5), STOPS, "1 annotation has an area that is not a number"
    ),
    "area as text in val": Case(
        _annotation(0, "val", area="5"), STOPS, "1 annotation has an area that is not a number"
    ),
    "areas beyond everything in val": Case(
        _annotations("val", area=1e308), STOPS, "8 annotations have an area that is not a number"
    ),
    "area of another box in val": Case(
        _annotation(0, "val", area=0.01), WARNS, "1 annotation has an area that does not go with"
    ),
    "segmentation a number": Case(_annotation(segmentation=5), STOPS, "1 segmentation is neither"),
    "segmentation flat": Case(
        _annotation(segmentation=_RING[0]), STOPS, "1 segmentation is neither"
    ),
    "segmentation without counts": Case(
        _annotation(segmentation={"size": [9, 9]}), STOPS, "1 segmentation is neither"
    ),
    "segmentation of two points": Case(
        _annotation(segmentation=[[1, 2, 3, 4]]), WARNS, "only polygons of less than three points"
    ),
    "segmentation good": Case(_annotation(segmentation=_RING), FINE),
    "keypoints as text": Case(_annotation(keypoints=["a"]), STOPS, "keypoints"),
    # Classes
    "class twice": Case(
        lambda s: s.content["train"]["categories"][1].update(id=3), STOPS, "the id 3 occurs twice"
    ),
    "class id as text": Case(
        lambda s: s.content["train"]["categories"][1].update(id="7"), STOPS, "is not an integer"
    ),
    "class without a name": Case(
        lambda s: s.content["train"]["categories"][1].pop("name"), STOPS, "an id and a name"
    ),
    "class name twice": Case(
        lambda s: [s.content[x]["categories"][1].update(name="bright") for x in ("train", "val")],
        WARNS,
        "1 class name is used by several ids",
    ),
    "class without a box": Case(
        lambda s: [a.update(category_id=3) for a in s.content["val"]["annotations"]],
        WARNS,
        "1 class has no box, e.g. 'dark'",
    ),
    "class missing in val": Case(
        _both(
            lambda s: s.content["val"]["categories"].pop(),
            lambda s: [a.update(category_id=3) for a in s.content["val"]["annotations"]],
        ),
        STOPS,
        "has 2 classes .* has 1 ",
    ),
    "class names differ": Case(
        lambda s: s.content["val"]["categories"][1].update(name="gray"),
        STOPS,
        "class 1 is 'dark' .* but 'gray'",
    ),
    "class order differs": Case(
        lambda s: [c.update(id=10 - c["id"]) for c in s.content["val"]["categories"]],
        STOPS,
        "class 0 is 'bright' .* but 'dark'",
    ),
    "class ids differ": Case(_other_ids("val", lambda i: i + 20, of="class"), FINE),
    # The JSON
    "no info": Case(_both(_no_key("info"), _no_key("info", "val")), FINE),
    "no key annotations": Case(_no_key("annotations"), STOPS, "has no list 'annotations'"),
    "no key annotations in val": Case(
        _no_key("annotations", "val"), STOPS, "has no list 'annotations'"
    ),
    "no annotations": Case(_key("annotations", []), STOPS, "has no annotations"),
    "no annotations in val": Case(_key("annotations", [], "val"), STOPS, "has no annotations"),
    "no images": Case(_key("images", []), STOPS, "has no images"),
    "no images in val": Case(_key("images", [], "val"), STOPS, "has no images"),
    "no key images": Case(_no_key("images"), STOPS, "has no list 'images'"),
    "no classes": Case(_key("categories", []), STOPS, "has no categories|has 2 classes"),
    "no key categories": Case(_no_key("categories"), STOPS, "has no list 'categories'"),
    "images are a dict": Case(_key("images", {"10": {}}), STOPS, "has no list 'images'"),
    "annotations hold lists": Case(_key("annotations", [[1, 2]]), STOPS, "must be a list of obj"),
    "annotations hold null": Case(
        lambda s: s.content["train"]["annotations"].append(None), STOPS, "must be a list of objects"
    ),
    "json is results": Case(
        _json(b'[{"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]'),
        STOPS,
        "is a file of results",
    ),
    "json is results in val": Case(
        _json(b'[{"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]', "val"),
        STOPS,
        "is a file of results",
    ),
    "json is a list": Case(_json(b"[1, 2]"), STOPS, "holds a list"),
    "json is a number": Case(_json(b"3"), STOPS, "holds a int"),
    "json is an empty object": Case(_json(b"{}"), STOPS, "is not in COCO's format"),
    "json is GeoJSON": Case(
        _json(b'{"type": "FeatureCollection", "features": []}'), STOPS, "is GeoJSON"
    ),
    "json is labelme": Case(_json(b'{"shapes": [], "imagePath": "a.jpg"}'), STOPS, "labelme"),
    "json truncated": Case(_json(lambda x: x[: len(x) // 2]), STOPS, "is not a JSON file: it ends"),
    "json truncated in val": Case(
        _json(lambda x: x[: len(x) // 2], "val"), STOPS, "is not a JSON file: it ends"
    ),
    "json empty": Case(_json(b""), STOPS, "is not a JSON file: it is empty"),
    "json zeros": Case(_json(lambda x: bytes(len(x))), STOPS, "is not a JSON file"),
    "json is a web page": Case(_json(_HTML), STOPS, "is not a JSON file: it is a web page"),
    "json is XML": Case(_json(b"<annotation/>"), STOPS, "is not a JSON file: it is XML"),
    "json is a pointer of Git LFS": Case(_json(_LFS), STOPS, "run git lfs pull"),
    "json lines": Case(_json(b'{"id": 1}\n{"id": 2}\n'), STOPS, "like JSON lines"),
    "json with a comment": Case(_json(lambda x: x[:1] + b"// a\n" + x[1:]), STOPS, "not a JSON"),
    "json in UTF-16": Case(
        _json(lambda x: x.decode().encode("utf-16")), STOPS, "is not a JSON file in UTF-8"
    ),
    "json in Latin-1": Case(
        _json(lambda x: x.replace(b"bright", "weiß".encode("latin-1"))), STOPS, "is not UTF-8"
    ),
    "json with a byte order mark": Case(
        _json(lambda x: b"\xef\xbb\xbf" + x), STOPS, "has a byte order mark"
    ),
    "json nested deeply": Case(_json(b'{"images": ' + b"[" * 99999), STOPS, "nested|not a JSON"),
    "json is a folder": Case(_make_json_folder, STOPS, "is a folder, not a JSON file"),
    "json with NaN elsewhere": Case(
        _key("info", {"version": math.nan}), WARNS, "1 number is written as NaN or Infinity"
    ),
}
