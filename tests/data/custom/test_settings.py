"""What is chosen follows from the numbers, stays within bounds, and says why."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from detectron2.data.transforms import ResizeShortestEdge
from hypothesis import given, settings

from atss_d2 import get_config
from atss_d2.data.custom.settings import (
    MODELS,
    choose,
    describe_too_large,
    find_too_large,
    resize_factors,
)
from atss_d2.data.custom.statistics import Statistics, choose_examples, count, describe
from tests.drawn_set import draw_set


def make(
    num: int, *, height: int = 480, width: int = 640, size: float = 60.0, per_image: int = 4
) -> Statistics:
    """Equal images with objects around one size."""
    spread = np.tile([0.7, 1.0, 1.0, 1.5], num * per_image)[: num * per_image]
    return Statistics(
        names=("a", "b"),
        file_names=tuple(f"{i}.jpg" for i in range(num)),
        heights=np.full(num, height),
        widths=np.full(num, width),
        image_idxs=np.repeat(np.arange(num), per_image),
        sizes=size * spread,
        classes=np.arange(num * per_image) % 2,
        num_crowd=0,
    )


def chosen(train: Statistics, model: str = "mobilenetv2", val_images: int = 30, has_gpu=False):
    return choose(model, train, make(val_images), has_gpu=has_gpu)


@settings(max_examples=60)
@given(
    st.integers(1, 3000),
    st.integers(40, 4000),
    st.integers(40, 4000),
    st.floats(2, 400),
    st.sampled_from(sorted(MODELS)),
    st.booleans(),
)
def test_bounds(num, height, width, size, model, has_gpu):
    train = make(num, height=height, width=width, size=size)
    result = chosen(train, model, has_gpu=has_gpu)
    short = min(height, width)
    assert result.short_side <= max(MODELS[model].sides[1], 32)
    assert result.short_side <= 2 * short + 32
    largest, aspect = MODELS[model].sides[1], max(height, width) / short
    assert result.short_side <= result.max_size <= max(aspect, 2) * result.short_side + 32
    assert result.max_size * result.short_side <= 2 * largest**2 + 32 * result.short_side
    assert result.train_short_sides[0] <= result.short_side <= result.train_short_sides[1]
    sides = [result.short_side, result.max_size, result.train_max_size, *result.train_short_sides]
    assert all(side % 32 == 0 < side for side in sides)
    assert 1 <= result.batch <= min(num, 8)
    assert result.lr == pytest.approx(MODELS[model].lr * result.batch)
    assert 300 <= result.max_iter <= 90_000
    assert 1 <= result.eval_period <= result.max_iter
    assert result.anchor_scale in (4, 8)
    fields = {field.name for field in dataclasses.fields(result)}
    assert set(result.reasons) <= fields
    assert all(result.reasons.values())


def test_small_objects_get_larger_images_and_smaller_anchors():
    large = chosen(make(200, size=120))
    medium = chosen(make(200, size=36))
    small = chosen(make(200, size=12))
    assert large.short_side == 320
    assert 320 < medium.short_side < small.short_side == 512
    assert (large.anchor_scale, medium.anchor_scale, small.anchor_scale) == (8, 4, 4)
    assert "reduced 0.67 times" in large.reasons["short_side"]
    assert "anchors of 32 to 256 px" in small.reasons["anchor_scale"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("height", "width", "size"), [(200, 4000, 40), (4000, 200, 40), (100, 2000, 30), (32, 2048, 25)]
)
def test_panoramas_keep_their_objects(model, height, width, size):
    """Of 40 px were left 8 when the longer side was at most twice the shorter."""
    train = make(100, height=height, width=width, size=size)
    result = chosen(train, model)
    factors = resize_factors(train, result.short_side, result.max_size)
    assert np.median(train.sizes * factors[train.image_idxs]) > 0.6 * size
    assert "reduced 0.68 times" in result.reasons["short_side"] or factors[0] > 0.9


def test_a_trained_detector_keeps_its_anchors():
    train = make(200, size=12)
    assert choose("r50", train, train, has_gpu=True).anchor_scale == 4
    assert choose("r50", train, train, has_gpu=True, is_trained=True).anchor_scale == 8


def test_schedule_grows_with_the_data():
    iterations = [chosen(make(num)).max_iter for num in (10, 40, 150, 300, 3000, 30000)]
    assert iterations == sorted(iterations)
    assert iterations[0] == 300
    assert iterations[-1] == 20_000
    # A hundred to three hundred images: under ten minutes by the measured speed.
    for num in (100, 200, 300):
        for size in (60, 12):
            result = chosen(make(num, size=size))
            pixels = result.max_iter * result.batch * result.short_side * result.max_size
            assert pixels / 1e6 * MODELS["mobilenetv2"].seconds < 600
            assert " minutes on two CPU cores" in result.reasons["max_iter"]
    on_gpu = chosen(make(30000), "r50", has_gpu=True)
    assert on_gpu.max_iter * on_gpu.batch == pytest.approx(12 * 30000, rel=0.02)  # the paper's 1x
    assert "CPU" not in on_gpu.reasons["max_iter"]


def test_evaluations_are_fewer_with_a_large_validation_set():
    few, many = chosen(make(200), val_images=30), chosen(make(200), val_images=3000)
    assert few.max_iter / few.eval_period == pytest.approx(10, abs=1)
    assert many.eval_period > 3 * few.eval_period
    assert few.reasons["eval_period"].endswith("of 30 images")


def test_factors_are_those_of_detectron2():
    train = dataclasses.replace(
        make(5),
        heights=np.array([480, 100, 3000, 64, 333]),
        widths=np.array([640, 2000, 40, 64, 1]),
    )
    factors = resize_factors(train, 320, 512)
    for height, width, factor in zip(train.heights, train.widths, factors):
        resize = ResizeShortestEdge(320, 512).get_transform(np.zeros((height, width, 3), np.uint8))
        assert resize.new_h == pytest.approx(height * factor, abs=0.51)
        assert resize.new_w == pytest.approx(width * factor, abs=0.51)


def test_images_too_large_for_one_pass_are_counted():
    train = make(6, height=500, width=500, size=40)
    heights = train.heights.copy()
    heights[4:] = 6000
    train = dataclasses.replace(train, heights=heights, widths=heights)
    result = chosen(train)
    found, before, after = find_too_large(train, result)
    assert found == [4, 5]
    assert before.tolist() == [40] * 6
    assert after[5] == pytest.approx(40 * result.short_side / 6000)
    text = describe_too_large(train, result, "train")
    assert text.startswith("2 of 6 train images are large enough to need tiles: resized to")
    assert "'4.jpg' (6000 x 6000): median object 40 px" in text
    assert not describe_too_large(make(6), chosen(make(6)), "train")
    # Objects that were tiny before are not lost by resizing.
    assert not describe_too_large(make(6, size=4), chosen(make(6, size=4)), "train")


def test_counts(tmp_path):
    content = draw_set(tmp_path, 12)
    content["annotations"][0]["iscrowd"] = 1
    objects = content["annotations"][1:]
    statistics = count(content)
    assert (statistics.num_images, statistics.num_objects) == (12, len(objects))
    assert statistics.num_crowd == 1
    for k, category in enumerate(content["categories"]):
        mine = [a for a in objects if a["category_id"] == category["id"]]
        assert statistics.objects_per_class[k] == len(mine)
        assert statistics.images_per_class[k] == len({a["image_id"] for a in mine})
    for i, image in enumerate(content["images"]):
        mine = [a for a in objects if a["image_id"] == image["id"]]
        assert statistics.objects_per_image[i] == len(mine)
    np.testing.assert_allclose(
        statistics.sizes, [(a["bbox"][2] * a["bbox"][3]) ** 0.5 for a in objects]
    )
    text = describe(statistics, statistics)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["train"][1:5] == ["12", "0", str(len(objects)), "1"]
    assert rows["disc"][1:3] == [
        str(statistics.objects_per_class[1]),
        str(statistics.images_per_class[1]),
    ]
    small = int((statistics.sizes < 32).sum())
    by_size = [line.split() for line in text.splitlines() if " small " in line]
    assert sum(int(row[row.index("small") + 1]) for row in by_size) == small


def test_examples_show_every_class(tmp_path):
    content = draw_set(tmp_path, 12)
    shown = choose_examples(content, 5)
    assert len(set(shown)) == 5
    classes = {a["category_id"] for a in content["annotations"] if a["image_id"] in shown[:3]}
    assert classes == {3, 7, 40}
    assert len(choose_examples(content, 50)) == 12


@pytest.mark.parametrize("model", MODELS)
def test_models_are_what_the_configs_build(model):
    """The numbers that the choices start from, against the configs."""
    cfg = get_config(MODELS[model].config)
    assert tuple(cfg.model.anchor_generator.strides) == MODELS[model].strides
    resize = cfg.dataloader.test.mapper.augmentations[0]
    assert resize.short_edge_length == MODELS[model].sides[0]
    rate = cfg.optimizer.lr / cfg.dataloader.train.total_batch_size
    assert rate == pytest.approx(MODELS[model].lr)
    train_resize = cfg.dataloader.train.mapper.augmentations[0]
    assert train_resize._target_ is resize._target_
