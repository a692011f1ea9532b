"""What travels with a file: complete, checked when it is read."""

import dataclasses
import json

import detectron2.data.transforms as T
import pytest

from atss_d2.data.augmentation import RandomSquareCrop, ResizeByFactor
from atss_d2.export import Metadata
from atss_d2.export.metadata import resizing_of
from tests.detector import build

METADATA = Metadata(class_names=("a", "b"), input_format="RGB")


def test_what_is_written_can_be_read():
    options = {"test_score_thresh": 0.2, "test_nms_thresh": 0.5, "max_detections_per_image": 7}
    names = ("Baum", "数", "")
    model = build(input_format="RGB", **options)
    metadata = Metadata.from_model(model, class_names=names, resize_factor=1.5, config="demo")
    assert (metadata.input_format, metadata.max_detections) == ("RGB", 7)
    assert (metadata.score_thresh, metadata.iou_thresh) == (0.2, 0.5)
    assert Metadata.from_model(model).class_names == ("0", "1", "2")
    assert Metadata.from_json(metadata.to_json()) == metadata
    assert Metadata.from_json(metadata.to_json().encode()) == metadata


def test_class_names_must_be_those_of_the_model():
    with pytest.raises(
        ValueError, match="the model has 3 classes, but there are 2 class names: a, b"
    ):
        Metadata.from_model(build(), class_names=["a", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_format": "GRAY"}, 'input_format must be one of BGR, RGB, got "GRAY"'),
        ({"input_dtype": "int8"}, 'input_dtype must be one of uint8, float32, got "int8"'),
        ({"dtype": "int4"}, "dtype must be one of float32, float16, bfloat16, int8"),
        ({"class_names": []}, "class_names is empty"),
        ({"class_names": "tree"}, "class_names must be .* got 'tree'"),
        ({"class_names": [1, 2]}, r"class_names must be .* got \(1, 2\)"),
        ({"shortest_edge": "800"}, "shortest_edge must be int | None, got '800'"),
        ({"shortest_edge": 0}, "shortest_edge must be > 0, got 0"),
        ({"shortest_edge": 8, "resize_factor": 2.0}, "either shortest_edge or resize_factor"),
        ({"max_detections": True}, "max_detections must be int, got True"),
        ({"with_nms": 1}, "with_nms must be bool, got 1"),
        ({"iou_thresh": 1.5}, r"iou_thresh must be in \[0, 1\], got 1.5"),
        ({"score_thresh": float("nan")}, r"score_thresh must be in \[0, 1\], got nan"),
        ({"resize_factor": float("nan")}, "resize_factor must be > 0, got nan"),
        ({"format_version": 2}, "reads format_version 1, got 2: export the model again"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        METADATA.replace(**change)
    text = json.dumps({**dataclasses.asdict(METADATA), **change})
    with pytest.raises(ValueError, match=message):
        Metadata.from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "metadata is not JSON"),
        (b"\xff\xfe{", "metadata is not JSON"),
        ("[1]", "must be a JSON object, got list"),
        ("{}", "metadata lacks class_names, input_format, format_version"),
        (
            json.dumps({**dataclasses.asdict(METADATA), "rezise_factor": 2}),
            "unknown keys: rezise_factor",
        ),
        (
            json.dumps({**dataclasses.asdict(METADATA), "format_version": 9, "new": 1}),
            "reads format_version 1, got 9",
        ),
    ],
)
def test_damaged_metadata(text, message):
    with pytest.raises(ValueError, match=message):
        Metadata.from_json(text)


def test_resizing_of_test_images():
    assert resizing_of([]) == {}
    assert resizing_of([ResizeByFactor(1.5)]) == {"resize_factor": 1.5}
    resize = T.ResizeShortestEdge(800, 1333)
    assert resizing_of([resize]) == {"shortest_edge": 800, "max_size": 1333}
    assert resizing_of([T.ResizeShortestEdge([800], 1333, "choice")]) == resizing_of([resize])
    assert resizing_of([T.ResizeShortestEdge(600)]) == {"shortest_edge": 600}  # no limit


@pytest.mark.parametrize(
    ("augmentations", "message"),
    [
        ([RandomSquareCrop(8, 8)], "not RandomSquareCrop"),
        ([ResizeByFactor(2), ResizeByFactor(2)], "one resizing .* ResizeByFactor, ResizeByFactor"),
        (
            [T.ResizeShortestEdge([600, 800], 1333, "choice")],
            r"ResizeShortestEdge with \[600, 800\]",
        ),
    ],
    ids=["crop", "two", "choice"],
)
def test_test_images_that_metadata_cannot_describe(augmentations, message):
    with pytest.raises(ValueError, match=message):
        resizing_of(augmentations)
