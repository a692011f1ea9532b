"""Batches of images of one size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.data import build_test_loader
from atss_d2.data.test_loader import SameSizeBatches, same_size_batches

SIZES = [(8, 12), (12, 8), (8, 8)]


def map_image(record):
    return {"image_id": record["image_id"], "image": torch.zeros(3, *record["size"])}


def records(kinds):
    return [{"image_id": i, "size": SIZES[kind]} for i, kind in enumerate(kinds)]


@settings(max_examples=60, derandomize=True, deadline=None)
@given(kinds=st.lists(st.integers(0, 2), min_size=1, max_size=12), batch_size=st.integers(2, 5))
def test_every_image_comes_once_in_a_full_batch_of_its_size(kinds, batch_size):
    loader = build_test_loader(records(kinds), mapper=map_image, batch_size=batch_size)
    batches = list(loader)
    assert sorted(x["image_id"] for batch in batches for x in batch) == list(range(len(kinds)))
    lengths = {}
    for batch in batches:
        shapes = {x["image"].shape for x in batch}
        assert len(shapes) == 1
        lengths.setdefault(shapes.pop(), []).append(len(batch))
    for count in lengths.values():  # only the last one of a size may be smaller
        assert all(length == batch_size for length in count[:-1])
        assert 1 <= count[-1] <= batch_size
    assert len(loader) <= len(batches)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(kinds=st.lists(st.integers(0, 2), max_size=20), max_waiting=st.integers(1, 4))
def test_few_images_wait_for_others_of_their_size(kinds, max_waiting):
    read = 0

    def images():
        nonlocal read
        for record in records(kinds):
            read += 1
            yield map_image(record)

    found = []
    for batch in same_size_batches(images(), 3, max_waiting=max_waiting):
        found += [x["image_id"] for x in batch]
        assert len({x["image"].shape for x in batch}) == 1
        assert read - len(found) <= max_waiting
    assert sorted(found) == list(range(len(kinds)))


def test_one_image_a_batch_is_detectron2s_loader():
    loader = build_test_loader(records([0, 1, 0]), mapper=map_image)
    assert not isinstance(loader, SameSizeBatches)
    assert [[x["image_id"] for x in batch] for batch in loader] == [[0], [1], [2]]


def test_a_second_round_gives_the_same():
    loader = build_test_loader(records([0, 1, 0, 2]), mapper=map_image, batch_size=2)
    rounds = [[[x["image_id"] for x in batch] for batch in loader] for _ in range(2)]
    assert rounds[0] == rounds[1] == [[0, 2], [1], [3]]


def test_a_batch_of_no_images_is_refused():
    with pytest.raises(ValueError, match=r"dataloader\.test\.batch_size must be >= 1, got 0"):
        build_test_loader(records([0]), mapper=map_image, batch_size=0)
