"""Tiles of a large photograph: whatever is in it is found once, and whole."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atss_d2.plain.detections import Detections, nms
from atss_d2.plain.tiles import Tiling
from atss_d2.predictor import nms_with_torch


def detections(boxes=(), scores=None, classes=None) -> Detections:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    scores = np.full(len(boxes), 0.9) if scores is None else scores
    classes = np.zeros(len(boxes)) if classes is None else classes
    return Detections(boxes, np.array(scores, np.float32), np.array(classes, np.int64))


def perfect_detector(tiling: Tiling, boxes: np.ndarray, scores) -> list[Detections]:
    """Of every tile, what is seen of the objects; each object is a class of its own."""
    found = []
    for x0, y0, x1, y1 in tiling.windows:
        seen = boxes.clip((x0, y0, x0, y0), (x1, y1, x1, y1)) - (x0, y0, x0, y0)
        is_seen = (seen[:, 2:] - seen[:, :2]).min(axis=1) >= 2
        found.append(
            detections(seen[is_seen], scores[is_seen], np.flatnonzero(is_seen)),
        )
    return found


def overview_of(tiling: Tiling, boxes: np.ndarray, scores, size) -> Detections:
    scale = np.tile(np.divide(tiling.overview_size, size), 2)
    return detections(boxes * scale, scores, np.arange(len(boxes)))


@st.composite
def scenes(draw):
    width, height = draw(st.integers(100, 900)), draw(st.integers(100, 900))
    num = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    longest = draw(st.sampled_from([20, 30, 90, 400]))
    sides = rng.uniform(8, longest, (num, 2)).clip(max=(width, height))
    corners = rng.uniform(0, 1, (num, 2)) * ((width, height) - sides)
    return (width, height), np.concatenate([corners, corners + sides], axis=1), rng


@given(scene=scenes(), overlap=st.sampled_from([0.25, 0.5]))
def test_every_object_is_found_once_and_whole(scene, overlap):
    size, boxes, rng = scene
    tiling = Tiling(*size, size=200, overlap=overlap)
    scores = rng.uniform(0.1, 1, len(boxes)).astype(np.float32)
    tiles = perfect_detector(tiling, boxes, rng.permutation(scores))
    if tiling.overview_size is None:
        merged = tiling.merge(tiles, None, 0.6)
    else:
        merged = tiling.merge(tiles, overview_of(tiling, boxes, scores, size), 0.6)
    order = np.argsort(merged.classes)
    assert merged.classes[order].tolist() == list(range(len(boxes)))
    np.testing.assert_allclose(merged.boxes[order], boxes, atol=0.01)
    assert (np.diff(merged.scores) <= 0).all()


@given(scene=scenes())
def test_small_objects_need_no_overview(scene):
    size, boxes, rng = scene
    tiling = Tiling(*size, size=200, overlap=0.5)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).max(axis=1) <= 0.5 * 200]
    tiles = perfect_detector(tiling, boxes, rng.uniform(0.1, 1, len(boxes)))
    merged = tiling.merge(tiles, None, 0.6)
    order = np.argsort(merged.classes)
    assert merged.classes[order].tolist() == list(range(len(boxes)))
    np.testing.assert_allclose(merged.boxes[order], boxes, atol=0.01)


def test_tiles_cover_the_photograph_and_are_equal():
    tiling = Tiling(2299, 2472, size=640, overlap=0.25)
    seen = np.zeros((2472, 2299), int)
    for x0, y0, x1, y1 in tiling.windows:
        assert (x1 - x0, y1 - y0) == (640, 640)
        seen[y0:y1, x0:x1] += 1
    assert seen.min() == 1
    # (2299 - 160) / (640 - 160) = 4.5 and (2472 - 160) / 480 = 4.8: 5 x 5 tiles.
    assert len(tiling.windows) == 25
    assert tiling.overview_size == (round(2299 * 640 / 2472), 640)


def test_a_photograph_of_one_tile_is_left_as_it_is():
    tiling = Tiling(300, 200, size=640)
    assert tiling.windows == [(0, 0, 300, 200)]
    assert tiling.overview_size is None
    # At the borders of the photograph nothing is cut.
    boxes = [[0, 0, 50, 40], [250, 160, 300, 200]]
    merged = tiling.merge([detections(boxes, [0.3, 0.8])], None, 0.5)
    np.testing.assert_array_equal(merged.boxes, boxes[::-1])


# 300 x 100 pixels in tiles of 200, of which 100 are shared: [0, 200) and [100, 300).
TILING = Tiling(300, 100, size=200, overlap=0.5)


def test_a_cut_object_is_the_neighbors():
    assert TILING.windows == [(0, 0, 200, 100), (100, 0, 300, 100)]
    left = detections([[170, 10, 199, 50]], [0.99])  # cut at 200
    right = detections([[70, 10, 130, 50]], [0.4])  # 170 to 230 of the photograph
    merged = TILING.merge([left, right], None, 0.5)
    assert merged.boxes.tolist() == [[170, 10, 230, 50]]
    np.testing.assert_allclose(merged.scores, [0.4])


def test_a_part_taken_for_something_else_is_not_kept():
    """Where the neighbor sees more, what a tile makes of a part does not count, whatever it is."""
    left = detections([[165, 0, 200, 90], [170, 10, 198, 50]], [0.99, 0.9], [0, 1])
    right = detections([[70, 10, 130, 50]], [0.4])
    merged = TILING.merge([left, right], None, 0.5)
    assert merged.boxes.tolist() == [[170, 10, 230, 50]]
    # Boxes that reach back beyond the neighbor's border stay: no tile sees more of them.
    left = detections([[90, 0, 200, 90]], [0.99], [1])
    assert len(TILING.merge([left, right], None, 0.5).boxes) == 2


def test_the_same_object_in_two_tiles_is_found_once():
    left = detections([[120, 10, 180, 50], [20, 20, 60, 60]], [0.6, 0.7], [1, 0])
    right = detections([[21, 11, 80, 50], [22, 10, 82, 50]], [0.8, 0.5], [1, 0])
    merged = TILING.merge([left, right], None, 0.5)
    # Another class is another object.
    assert merged.boxes.tolist() == [[121, 11, 180, 50], [20, 20, 60, 60], [122, 10, 182, 50]]
    assert merged.classes.tolist() == [1, 0, 0]


def test_a_large_object_comes_from_the_overview():
    pieces = [detections([[40, 20, 200, 80]], [0.9]), detections([[0, 20, 160, 80]], [0.95])]
    whole = [40 / 1.5, 20 / 1.5, 260 / 1.5, 80 / 1.5]
    assert TILING.overview_size == (200, 67)
    scale_y = 67 / 100 * 1.5
    whole[1::2] = [y * scale_y for y in whole[1::2]]
    small = [10, 10, 20, 20]  # the overview's small boxes do not count
    merged = TILING.merge(pieces, detections([whole, small], [0.3, 0.99]), 0.6)
    np.testing.assert_allclose(merged.boxes, [[40, 20, 260, 80]], atol=1e-3)
    # Where the overview misses it, the pieces stay.
    assert len(TILING.merge(pieces, detections(), 0.6).boxes) == 2


def test_detection_of_the_tiles_by_a_function():
    image = np.zeros((100, 300, 3), np.uint8)
    image[40:60, 170:230] = 250
    seen = []

    def detect(images):
        found = []
        for x in images:
            seen.append(x.shape)
            ys, xs = np.nonzero(x[:, :, 0] > 125)
            box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            found.append(detections([box, [0, 0, 9, 9]], [0.8, 0.2]))
        return found

    merged, num_full = TILING.detect(
        image, detect, iou_thresh=0.5, score_thresh=0.5, max_detections=1
    )
    assert seen == [(100, 200, 3), (100, 200, 3), (67, 200, 3)]
    assert merged.boxes.tolist() == [[170, 40, 230, 60]]
    assert num_full == 3  # each has one detection above the threshold, and may give no more
    _, num_full = TILING.detect(image, detect, iou_thresh=0.5, max_detections=100)
    assert num_full == 0


def test_nothing_found():
    merged = TILING.merge([detections(), detections()], detections(), 0.5)
    assert merged.boxes.shape == (0, 4)
    assert merged.scores.shape == merged.classes.shape == (0,)


@given(seed=st.integers(0, 1000), num=st.integers(0, 80))
def test_both_nms_agree(seed, num):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (num, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 50, (num, 2))], axis=1)
    scores, classes = rng.uniform(-2, 1, num), rng.integers(3, size=num)
    arrays = boxes.astype(np.float32), scores.astype(np.float32), classes
    expected = nms_with_torch(*arrays, 0.5)
    assert nms(*arrays, 0.5).tolist() == expected.tolist()
    assert torch.from_numpy(expected).dtype == torch.int64


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [(31, 0.25, "at least 32 pixels, got 31"), (640, 1.0, "between 0 and 0.9, got 1.0")],
)
def test_impossible_tiles(size, overlap, message):
    with pytest.raises(ValueError, match=message):
        Tiling(1000, 1000, size=size, overlap=overlap)
