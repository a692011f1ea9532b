import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.data.embedded.tiles import (
    clip_to_window,
    cover_overlapping,
    evaluation_windows,
    split_evenly,
)


def test_split_by_hand():
    # 1249 / 640 -> 2 parts, cut at 1249 // 2 = 624; 2299 / 640 -> 4 parts, at 574, 1149, 1724.
    assert split_evenly(0, 1249, 640) == [(0, 624), (624, 1249)]
    assert split_evenly(0, 2299, 640) == [(0, 574), (574, 1149), (1149, 1724), (1724, 2299)]
    assert split_evenly(10, 410, 640) == [(10, 410)]


def test_cover_by_hand():
    # 2299 px, tiles of 640, 320 shared: (2299 - 320) / (640 - 320) = 6.2 -> 7 tiles, the last at
    # 2299 - 640 = 1659; tile i at 1659 i // 6.
    starts = [0, 276, 553, 829, 1106, 1382, 1659]
    assert cover_overlapping(0, 2299, 640, 320) == [(s, s + 640) for s in starts]
    assert cover_overlapping(5, 405, 640, 320) == [(5, 405)]
    assert cover_overlapping(0, 641, 640, 320) == [(0, 640), (1, 641)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_evenly(5, 5, 10), r"\[5, 5\) is empty"),
        (lambda: split_evenly(0, 5, 0), "tile size must be >= 1 pixel, got 0"),
        (lambda: cover_overlapping(0, 50, 10, 10), r"overlap must be in \[0, size = 10\), got 10"),
    ],
)
def test_impossible_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@settings(deadline=None)
@given(st.integers(-50, 50), st.integers(1, 3000), st.integers(1, 700))
def test_split_is_a_partition_into_equal_parts(start, length, max_size):
    parts = split_evenly(start, start + length, max_size)
    sizes = [stop - first for first, stop in parts]
    assert parts[0][0] == start
    assert parts[-1][1] == start + length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert max(sizes) <= max_size
    assert max(sizes) - min(sizes) <= 1
    assert (len(parts) - 1) * max_size < length  # one part less would not do


@settings(deadline=None)
@given(st.integers(-50, 50), st.integers(1, 3000), st.integers(2, 700), st.data())
def test_cover_holds_every_crop(start, length, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    stop = start + length
    spans = cover_overlapping(start, stop, size, overlap)
    assert spans[0][0] == start
    assert spans[-1][1] == stop
    assert {b - a for a, b in spans} == {min(size, length)}
    assert all(a[1] - b[0] >= overlap for a, b in itertools.pairwise(spans))
    # Wherever a crop of the overlap's size lies, one tile holds the whole of it.
    crop = min(overlap, length)
    first = data.draw(st.integers(start, stop - crop))
    assert any(a <= first and first + crop <= b for a, b in spans)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 79), st.integers(1, 60), st.integers(1, 60)),
        max_size=8,
    ),
    st.integers(5, 60),
)
def test_clipping_conserves_area(entries, size):
    boxes = np.array(
        [(x, y, min(x + w, 100), min(y + h, 80)) for x, y, w, h in entries], np.float64
    ).reshape(-1, 4)
    total = np.zeros(len(boxes))
    for window in evaluation_windows((0, 0, 100, 80), size):
        clipped, visible = clip_to_window(boxes, window)
        assert (clipped >= 0).all()
        assert (clipped[:, 2::2] <= window[2] - window[0]).all()
        assert (clipped[:, 3::2] <= window[3] - window[1]).all()
        sides = clipped[:, 2:] - clipped[:, :2]
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        torch.testing.assert_close(
            torch.from_numpy(sides.prod(1)), torch.from_numpy(visible * areas)
        )
        total += visible
    torch.testing.assert_close(torch.from_numpy(total), torch.ones(len(boxes)).double())
