import hashlib
import json

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.data import prepare_shapes
from atss_d2.data.embedded.shape_drawing import SHAPES_CLASSES, shape_mask
from atss_d2.data.embedded.shapes import _Canvas, draw_scene


def _bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_scenes_are_the_same_everywhere():
    # Taken with numpy 1.26 and 2.4; boxes and classes depend on nothing else.
    digest = hashlib.sha256()
    for index in range(10):
        scene = draw_scene("shapes_val", index)
        digest.update(scene.boxes.astype(np.float64).tobytes())
        digest.update(scene.classes.astype(np.int64).tobytes())
    assert digest.hexdigest()[:16] == "be2c79a1c6d63f6f"
    again = draw_scene("shapes_val", 9)
    np.testing.assert_array_equal(again.pixels, scene.pixels)
    assert not np.array_equal(draw_scene("shapes_train", 9).boxes, scene.boxes)


def test_the_kinds_of_scenes():
    scenes = [draw_scene("shapes_train", index) for index in range(40)]
    for index, scene in enumerate(scenes):
        assert scene.is_crowd.sum() == (index % 10 == 3)
        assert (len(scene.boxes) == 0) == (index % 10 == 7)
        if index % 10 == 5:
            assert len(scene.boxes) >= 10
    assert set(np.concatenate([s.classes for s in scenes])) == set(range(len(SHAPES_CLASSES)))
    assert len({s.pixels.shape for s in scenes}) > 20
    boxes = np.concatenate([s.boxes[~s.is_crowd] for s in scenes])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert longer.min() < 12
    assert longer.max() > 200
    assert longer.max() <= 300
    # Log-uniform sizes: half of the objects outside clusters are below sqrt(8 * 300) = 49 px.
    assert 0.4 < (longer < 49).mean() < 0.9


def test_boxes_are_those_of_the_visible_pixels():
    rng = np.random.default_rng(0)
    canvas = _Canvas(np.full((100, 140, 3), 128, np.uint8), np.random.default_rng(1))
    before = canvas.pixels.copy()
    for label in range(6):
        canvas.add(rng, label, 40.0)
    canvas.add(rng, 1, 10.0, within=(20, 20, 60, 60), group=0)
    canvas.add(rng, 1, 10.0, within=(20, 20, 60, 60), group=0)
    boxes, classes, is_crowd = canvas.labels()
    assert is_crowd.tolist() == [False] * (len(boxes) - 1) + [True]
    assert classes[-1] == 1
    # What was painted is what has an owner, and the union of the boxes is its bounding box.
    changed = (canvas.pixels != before).any(2)
    assert not (changed & (canvas.owner < 0)).any()
    for index, area in enumerate(canvas.areas):
        rows, columns = np.nonzero(canvas.owner == index)
        assert len(rows) >= 0.25 * area
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        if canvas.groups[index] < 0:
            np.testing.assert_array_equal(boxes[index], tight)
        else:
            assert (boxes[-1][:2] <= tight[:2]).all()
            assert (boxes[-1][2:] >= tight[2:]).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 5), st.floats(8, 300), st.integers(0, 2**31))
def test_masks_are_tight_and_as_large_as_asked(label, size, seed):
    mask = shape_mask(np.random.default_rng(seed), label, size)
    # A tip so thin that it holds no centre of a pixel is not drawn: at most 4 % of a star.
    assert -2 - 0.04 * size <= max(mask.shape) - size <= 2
    assert mask[0].any()
    assert mask[-1].any()
    assert mask[:, 0].any()
    assert mask[:, -1].any()


@pytest.mark.parametrize(
    ("name", "fraction"),
    # Of the square around a circle of radius 1: pi / 4, and pi / 4 (1 - 0.55^2) with a hole.
    [("disc", np.pi / 4), ("ring", np.pi / 4 * (1 - 0.55**2))],
)
def test_areas_by_hand(name, fraction):
    mask = shape_mask(np.random.default_rng(0), SHAPES_CLASSES.index(name), 200.0)
    assert abs(mask.sum() / 200**2 - fraction) < 0.01
    assert mask[100, 100] == (name == "disc")


def test_files_are_deterministic_and_complete(tmp_path):
    counts = {"shapes_train": 4, "shapes_val": 3}
    first = prepare_shapes(tmp_path / "a", num_images=counts)
    second = prepare_shapes(tmp_path / "b", num_images=counts)
    assert _bytes(first) == _bytes(second)
    content = json.loads((first / "annotations" / "shapes_train.json").read_text())
    assert [c["name"] for c in content["categories"]] == list(SHAPES_CLASSES)
    assert [c["id"] for c in content["categories"]] == [1, 2, 3, 4, 5, 6]
    assert sum(a["iscrowd"] for a in content["annotations"]) == 1
    for index, image in enumerate(content["images"]):
        pixels = cv2.imread(str(first / "images" / image["file_name"]))
        np.testing.assert_array_equal(pixels, draw_scene("shapes_train", index).pixels)


def test_a_second_run_writes_nothing_and_another_count_draws_anew(tmp_path):
    folder = prepare_shapes(tmp_path, num_images={"shapes_val": 2})
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    prepare_shapes(tmp_path, num_images={"shapes_val": 2})
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
    prepare_shapes(tmp_path, num_images={"shapes_val": 3})
    content = json.loads((folder / "annotations" / "shapes_val.json").read_text())
    assert len(content["images"]) == 3


def test_wide_scenes_spread_over_the_pyramid():
    """Anchors of 64, 128 and 256 px are each the nearest in size to some; none is empty."""
    scenes = [draw_scene("shapes_wide_val", index) for index in range(40)]
    boxes = np.concatenate([scene.boxes for scene in scenes])
    sizes = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    levels = np.histogram(sizes, [0, 64 * 2**0.5, 128 * 2**0.5, 1000])[0] / len(sizes)
    assert levels == pytest.approx([0.67, 0.30, 0.03], abs=0.1)
    assert levels[2] > 0.005
    assert min(len(scene.boxes) for scene in scenes) >= 1
    assert not any(scene.is_crowd.any() or scene.classes.any() for scene in scenes)
    assert min(min(scene.pixels.shape[:2]) for scene in scenes) >= 240
    assert max(max(scene.pixels.shape[:2]) for scene in scenes) <= 288
