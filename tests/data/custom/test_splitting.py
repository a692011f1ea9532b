"""A split is disjoint, complete, repeatable, of the right size, and has every class in both."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from atss_d2.data.custom.splitting import split_images


def content_of(classes_of_images: list[set[int]], num_classes: int) -> dict:
    """COCO's dict of images that have these classes."""
    pairs = [(i, k) for i, classes in enumerate(classes_of_images) for k in sorted(classes)]
    return {
        "images": [{"id": f"i{i}"} for i in range(len(classes_of_images))],
        "annotations": [
            {"id": n + 1, "image_id": f"i{i}", "category_id": 10 * k}
            for n, (i, k) in enumerate(pairs)
        ],
        "categories": [{"id": 10 * k, "name": str(k)} for k in range(num_classes)],
        "licenses": [],
    }


def ids(part: dict) -> list[str]:
    return [image["id"] for image in part["images"]]


def classes(part: dict) -> set[int]:
    return {annotation["category_id"] for annotation in part["annotations"]}


many_images = st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=2, max_size=60)


@settings(max_examples=60)
@given(many_images, st.floats(0.05, 0.6), st.integers(0, 5))
def test_disjoint_complete_and_repeatable(images, fraction, seed):
    content = content_of(images, 6)
    train, val = split_images(content, fraction=fraction, seed=seed)
    assert train["images"]
    assert val["images"]
    assert sorted(ids(train) + ids(val)) == sorted(ids(content))
    for part in (train, val):
        mine = set(ids(part))
        assert part["annotations"] == [a for a in content["annotations"] if a["image_id"] in mine]
        assert part["categories"] == content["categories"]
        assert part["licenses"] == []
        assert ids(part) == [i for i in ids(content) if i in mine]  # in order
    assert (train, val) == split_images(content, fraction=fraction, seed=seed)


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=60),
    st.integers(0, 10),
    st.floats(0.1, 0.5),
)
def test_every_class_of_two_images_is_in_both_parts(labels, num_empty, fraction):
    """Always possible where an image has one class."""
    content = content_of([{k} for k in labels] + [set()] * num_empty, 6)
    train, val = split_images(content, fraction=fraction, seed=0)
    shared = {10 * k for k in set(labels) if labels.count(k) > 1}
    assert shared <= classes(train) & classes(val)


@settings(max_examples=40)
@given(st.lists(st.sets(st.integers(0, 3), min_size=1, max_size=2), min_size=4, max_size=7))
def test_no_split_has_more_classes_in_both_parts(images):
    """Compared with all splits of the same images."""

    def num_shared(is_val):
        sides = [set().union(*(x for x, v in zip(images, is_val) if v == side)) for side in (0, 1)]
        return len(sides[0] & sides[1])

    best = max(num_shared(is_val) for is_val in itertools.product((0, 1), repeat=len(images)))
    val = set(ids(split_images(content_of(images, 4), fraction=0.3, seed=0)[1]))
    assert num_shared([f"i{i}" in val for i in range(len(images))]) >= best - 1


def test_the_part_for_validation_is_as_large_as_asked_for():
    rng = np.random.default_rng(0)
    images = [set(np.flatnonzero(rng.random(8) < 0.2).tolist()) for _ in range(400)]
    content = content_of(images, 8)
    for fraction in (0.1, 0.2, 0.5):
        train, val = split_images(content, fraction=fraction, seed=1)
        assert len(val["images"]) == pytest.approx(400 * fraction, rel=0.1)
        counts = [
            [sum(a["category_id"] == 10 * k for a in part["annotations"]) for k in range(8)]
            for part in (train, val)
        ]
        shares = np.array(counts[1]) / np.sum(counts, axis=0)
        assert np.abs(shares - fraction).max() < 0.05  # of every class


def test_other_seeds_give_other_parts():
    content = content_of([{i % 3} for i in range(50)], 3)
    parts = [set(ids(split_images(content, fraction=0.2, seed=seed)[1])) for seed in range(4)]
    assert len({frozenset(part) for part in parts}) == 4


@settings(max_examples=30)
@given(st.integers(4, 30), st.integers(0, 3))
def test_groups_stay_together(num, seed):
    content = content_of([{i % 2} for i in range(num)], 2)
    groups = [["i0", "i3"], ["i1", "i2"]]
    for part in split_images(content, fraction=0.3, seed=seed, groups=groups):
        for group in groups:
            assert len(set(group) & set(ids(part))) in (0, 2)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_fractions_out_of_range_are_refused(fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_images(content_of([{0}, {0}], 1), fraction=fraction, seed=0)


def test_a_single_image_is_not_split():
    with pytest.raises(ValueError, match="a single image cannot be split"):
        split_images(content_of([{0}], 1), fraction=0.2, seed=0)
    with pytest.raises(ValueError, match="a single image"):  # and its copy
        split_images(content_of([{0}, {0}], 1), fraction=0.2, seed=0, groups=[["i0", "i1"]])
