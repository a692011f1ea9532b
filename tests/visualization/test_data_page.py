"""The page about a data set: every image in its place, boxes where they belong, never an error."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from atss_d2.visualization.data_page import _GAP, _MARGIN, _WIDTH, LabeledImage, draw_data_page
from atss_d2.visualization.data_page import _arrange as arrange


def labeled(path, size, boxes, classes, mode="RGB"):
    width, height = size
    Image.new(mode, size, 0).save(path)
    boxes = np.array(boxes, np.float64).reshape(-1, 4) * (width, height, width, height)
    return LabeledImage(path, boxes, np.array(classes, int), np.zeros(len(boxes), bool))


def draw(path, images, names, **changes):
    rng = np.random.default_rng(0)
    arguments = {
        "title": "a title",
        "class_names": names,
        "sizes": {"train": rng.uniform(5, 300, 200), "val": rng.uniform(5, 300, 50)},
        "class_counts": {part: np.arange(len(names)) for part in ("train", "val")},
        "anchor_sides": [64, 128, 256],
    }
    draw_data_page(path, images, **{**arguments, **changes})
    return np.asarray(Image.open(path).convert("RGB"))


def test_boxes_have_the_colors_of_their_classes(tmp_path):
    image = labeled(tmp_path / "a.png", (300, 200), [[0.2, 0.3, 0.4, 0.4]], [0])
    page = draw(tmp_path / "page.png", [image], ["disc", "square"])
    is_dark = (page == 0).all(2)
    rows, columns = np.flatnonzero(is_dark.sum(1) > 100), np.flatnonzero(is_dark.sum(0) > 60)
    y0, y1, x0, x1 = rows[0], rows[-1], columns[0], columns[-1]
    assert (x1 - x0) / (y1 - y0) == pytest.approx(1.5, rel=0.02)
    inside = page[y0:y1, x0:x1].astype(int)
    is_yellow = (inside[..., 0] > 180) & (inside[..., 1] > 150) & (inside[..., 2] < 90)
    ys, xs = np.nonzero(is_yellow)
    height, width = y1 - y0, x1 - x0
    assert xs.min() / width == pytest.approx(0.2, abs=0.02)
    assert xs.max() / width == pytest.approx(0.6, abs=0.02)
    assert ys.max() / height == pytest.approx(0.7, abs=0.02)


ODD = {
    "nothing": ([], ["disc"]),
    "no boxes": ([((300, 200), [], [])], ["disc"]),
    "sizes and letters": (
        [
            ((3000, 90), [[0.1, 0.1, 0.1, 0.5]], [1]),
            ((50, 2000), [[0.1, 0.1, 0.1, 0.5]], [0]),
            ((1, 1), [[0, 0, 1, 1]], [0]),
        ],
        ["汽车", "$\\frac{"],
    ),
    "many classes": (
        [((300, 200), [[0.1, 0.1, 0.1, 0.5]] * 80, list(range(80)))],
        [f"class {k} of a very long name, which goes on and on $x_{k}" for k in range(80)],
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_data_give_a_page(tmp_path, recwarn, case):
    images, names = ODD[case]
    labeled_images = [labeled(tmp_path / f"{i}.png", *x) for i, x in enumerate(images)]
    page = draw(tmp_path / "out" / "page.png", labeled_images, names)
    assert page.shape[1] == pytest.approx(_WIDTH * 110, abs=1)
    assert len(np.unique(page.reshape(-1, 3), axis=0)) > 50
    assert [str(w.message) for w in recwarn if "Glyph" in str(w.message)] == []


def test_without_objects_for_validation(tmp_path):
    image = labeled(tmp_path / "a.png", (300, 200), [[0.2, 0.3, 0.4, 0.4]], [0], mode="L")
    sizes = {"train": np.array([10.0]), "val": np.zeros(0)}
    draw(tmp_path / "page.png", [image], ["disc"], sizes=sizes, resize_factor=0.4)


def test_an_unreadable_image_is_left_out_with_a_warning(tmp_path, caplog):
    good = labeled(tmp_path / "a.png", (300, 200), [], [])
    bad = LabeledImage(tmp_path / "b.png", *(good.boxes, good.classes, good.is_crowd))
    bad.path.write_text("no image")
    draw(tmp_path / "page.png", [bad, good], ["disc"])
    assert "b.png' is not on the page" in caplog.text


@given(st.lists(st.floats(1 / 3, 3), max_size=20))
def test_rows_fill_the_width_and_keep_the_order(aspects):
    rows = arrange(aspects)
    members = [i for row, _ in rows for i in row]
    assert members == list(range(len(members)))  # the last ones may be left out
    assert not aspects or members
    for row, height in rows:
        width = sum(aspects[i] * height for i in row) + _GAP * (len(row) - 1)
        assert 0 < height <= 2.7
        assert width <= _WIDTH - 2 * _MARGIN + 1e-6
    for row, height in rows[:-1]:
        width = sum(aspects[i] * height for i in row) + _GAP * (len(row) - 1)
        assert width == pytest.approx(_WIDTH - 2 * _MARGIN)
