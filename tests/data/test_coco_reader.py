"""Our reader of COCO's JSON gives what Detectron2's gives, without segmentations and keypoints."""

import json
import logging

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.data import coco_reader, json_stream
from atss_d2.data.coco_reader import load_coco_boxes

NAME = "reader_test"
LOGGERS = ("detectron2", "atss_d2")
DROPPED = {"segmentation", "keypoints"}


def image(number: int, **more) -> dict:
    return {"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 50, **more}


def annotation(number: int, image_id: int = 1, **more) -> dict:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [1.5, 2, 3.25, 4],
        "iscrowd": 0,
        **more,
    }


def content(*annotations: dict, **more) -> dict:
    return {
        "images": [image(7), image(1), image(4)],
        "categories": [{"id": 9, "name": "nine"}, {"id": 3, "name": "three"}],
        "annotations": list(annotations),
        **more,
    }


class Warnings(logging.Handler):
    """Collects the beginnings of warnings within its context."""

    def __enter__(self) -> list[str]:
        self.found: list[str] = []
        for name in LOGGERS:  # which may not pass on to the root
            logging.getLogger(name).addHandler(self)
        return self.found

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.found.append(" ".join(record.getMessage().split())[:60])

    def __exit__(self, *_) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self)


def outcome(load, path) -> tuple:
    """Returns the dicts, or the error, and what the metadata and the log got."""
    if NAME in MetadataCatalog:
        MetadataCatalog.remove(NAME)
    with Warnings() as warnings:
        try:
            result = [
                {**x, "annotations": list(map(described, x["annotations"]))}
                for x in load(str(path), "root", NAME)
            ]
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
    return result, MetadataCatalog.get(NAME).as_dict(), warnings


def described(annotation: dict) -> list:
    kept = [(k, v, type(v)) for k, v in annotation.items() if k not in DROPPED]
    return [*kept, list(map(type, annotation.get("bbox", ())))]  # 1 equals 1.0


def assert_equal(text: str, path) -> None:
    path.write_text(text)
    assert outcome(load_coco_boxes, path) == outcome(load_coco_json, path)


POLYGON = [[1.0, 2, 3, 4, 5, 6]]
RLE = {"size": [40, 50], "counts": [100, 20, 1880]}
UNUSUAL = {
    "no annotations": content(),
    "no images": content(images=[]),
    "no categories": content(categories=[]),
    "an empty object": {},
    "a list": [1],
    "keys missing": {"images": []},
    "ids twice": content(annotation(1), annotation(1)),
    "images twice": content(images=[image(1), image(1)]),
    "ids of strings": content(annotation("a", "x"), images=[image("x")]),
    "ids of floats": content(annotation(1.0), annotation(2, 1.0)),
    "id true": content(annotation(True), annotation(0)),
    "unknown category": content(annotation(1, category_id=5)),
    "a category above all": content(annotation(1, category_id=50)),
    "category missing": content({"id": 1, "image_id": 1}),
    "empty box": content(annotation(1, bbox=[])),
    "empty box without polygon": content(annotation(1, bbox=[], segmentation=[[1, 2]])),
    "no box": content({"id": 1, "image_id": 1, "category_id": 9}),
    "three numbers": content(annotation(1, bbox=[1, 2, 3])),
    "strings": content(annotation(1, bbox=["1", "2", "3", "4"])),
    "null": content(annotation(1, bbox=None)),
    "not finite": content(annotation(1, bbox=[float("inf"), -float("inf"), 1e300, 0])),
    "huge": content(annotation(1, bbox=[2**53 + 1, 2**70, 1, 1])),
    "bool": content(annotation(1, bbox=[True, 1, 2, 3])),
    "iscrowd true": content(annotation(1, iscrowd=True)),
    "iscrowd null": content(annotation(1, iscrowd=None)),
    "iscrowd -1": content(annotation(1, iscrowd=-1)),
    "no iscrowd": content({"id": 1, "image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4]}),
    "ignore": content(annotation(1, ignore=1)),
    "ignore 0": content(annotation(1, ignore=0)),
    "orphans": content(annotation(1), annotation(2, 99), annotation(3, 98, segmentation=[[1]])),
    "invalid polygons": content(annotation(1, segmentation=[[1, 2], [1, 2, 3, 4, 5]])),
    "one valid polygon": content(annotation(1, segmentation=[[1, 2], *POLYGON])),
    "broken polygon": content(annotation(1, segmentation=[*POLYGON, 3])),
    "no polygon": content(annotation(1, segmentation=[])),
    "RLE": content(annotation(1, segmentation=RLE, iscrowd=1)),
    "RLE of a string": content(annotation(1, segmentation={"size": [4, 5], "counts": "abc"})),
    "RLE without counts": content(annotation(1, segmentation={"size": [4, 5]})),
    "RLE without size": content(annotation(1, segmentation={"counts": [1, 2]})),
    "keypoints": content(annotation(1, keypoints=[1, 2, 2])),
    "empty keypoints": content(annotation(1, keypoints=[])),
    "broken keypoints": content(annotation(1, keypoints=["a", 2, 2])),
    "more keys": content(annotation(1, area=3, attributes={"x": [1]}), info={"a": [{"images": 1}]}),
    "a size of text": content(annotation(1), images=[image(1, height="40", extra="x")]),
    "no width": content(images=[{"id": 1, "file_name": "a", "height": 1}]),
    "annotations null": content(annotations=None),
    "an annotation is null": content(None),
    "names twice": content(categories=[{"id": 3, "name": "a"}, {"id": 9, "name": "a"}]),
    "categories twice": content(categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_content(case, tmp_path):
    assert_equal(json.dumps(UNUSUAL[case]), tmp_path / "a.json")


TEXT = json.dumps(content(annotation(1, segmentation=POLYGON), annotation(2, 4)), indent=1)
BROKEN = {
    "nothing": "",
    "spaces": " \n",
    "cut off": TEXT[:-30],
    "cut within a number": TEXT[: TEXT.index("3.25") + 2],
    "more behind": TEXT + "1",
    "spaces around": f"\n {TEXT} \n",
    "other spaces": "\u00a0" + TEXT,
    "a comma too many": TEXT.replace("]\n}", "],\n}"),
    "no comma": TEXT.replace("},", "}"),
    "a key twice": TEXT[:-1] + ', "images": []}',
    "a key without quotes": "{1: 2," + TEXT[1:],
    "an unknown literal": TEXT.replace("3.25", "nul"),
    "NaN": TEXT.replace("3.25", "-Infinity"),
    "HTML": "<html></html>",
    "a BOM": "\ufeff" + TEXT,
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 24])
def test_broken_files(case, chunk, tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    assert_equal(BROKEN[case], tmp_path / "a.json")


NUMBERS = st.integers(-5, 900) | st.floats(-1e6, 1e6)
POLYGONS = st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=3)
ANNOTATIONS = st.fixed_dictionaries(
    {
        "image_id": st.integers(0, 5),
        "category_id": st.sampled_from([3, 9]),
        "bbox": st.lists(NUMBERS, min_size=4, max_size=4),
    },
    optional={"iscrowd": st.integers(0, 1), "segmentation": POLYGONS, "area": NUMBERS},
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ANNOTATIONS, max_size=8), st.sets(st.integers(0, 5), min_size=1), st.integers(1, 90)
)
def test_any_content(tmp_path_factory, annotations, image_ids, chunk):
    annotations = [{"id": 5 * i, **x} for i, x in enumerate(annotations)]
    images = [image(i) for i in image_ids]
    whole = content(*annotations, images=images, version=1234567)
    path = tmp_path_factory.getbasetemp() / "any.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)
        # Must not be left to load_coco_json, which is what it is compared with.
        patch.setattr(coco_reader, "load_coco_json", None)
        assert_equal(json.dumps(whole), path)


def test_usual_files_are_not_left_to_detectron2(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(UNUSUAL["RLE"]))
    monkeypatch.setattr(coco_reader, "load_coco_json", None)
    first, *_ = load_coco_boxes(str(path), "root", NAME)
    assert len(first["annotations"]) == 1
    assert first["annotations"][0] == next(iter(first["annotations"]))
