"""Paired comparison: AP of drawn images is COCO's, intervals and calibration by hand."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ablations.paired import (
    ClassMatches,
    average_precision,
    calibration_error,
    draw_images,
    interval_of_difference,
    match,
)


def data_set(rng, num_images=6, num_classes=2, copies=None):
    """A data set and detections; ``copies`` says how often each image is in it."""
    images, annotations, results = [], [], []
    for i in range(num_images):
        boxes = rng.uniform(0, 60, (rng.integers(0, 4), 2))
        classes = rng.integers(1, num_classes + 1, len(boxes))
        noise = rng.normal(0, 3, (len(boxes), 4))
        extra = rng.uniform(0, 60, (3, 2))
        for copy in range(1 if copies is None else copies[i]):
            image = 100 * i + copy
            images.append({"id": image, "width": 100, "height": 100})
            for (x, y), k in zip(boxes, classes):
                box = [x, y, 20.0, 20.0]
                annotations.append(
                    dict(id=len(annotations) + 1, image_id=image, category_id=int(k), bbox=box)
                    | dict(area=400.0, iscrowd=0)
                )
            for j, ((x, y), k) in enumerate(zip(boxes, classes)):
                box = (np.array([x, y, 20, 20]) + noise[j]).tolist()
                score = 0.9 - 0.01 * j - 0.1 * i
                results.append(dict(image_id=image, category_id=int(k), bbox=box, score=score))
            for j, (x, y) in enumerate(extra):
                box = [x, y, 20.0, 20.0]
                score = 0.85 - 0.013 * j - 0.1 * i
                results.append(dict(image_id=image, category_id=1 + j % 2, bbox=box, score=score))
    categories = [{"id": k, "name": str(k)} for k in range(1, num_classes + 1)]
    return dict(images=images, annotations=annotations, categories=categories), results


def as_coco(contents):
    coco = COCO()
    coco.dataset = contents
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def by_pycocotools(contents, results):
    coco = as_coco(contents)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # T, recalls, classes
    per_class = [100 * precision[:, :, k].mean(axis=1) for k in range(precision.shape[2])]
    return np.mean([x for x in per_class if x[0] >= 0], axis=0)


@pytest.mark.parametrize("seed", range(5))
def test_weights_of_images_are_copies_of_them(seed, tmp_path):
    contents, results = data_set(np.random.default_rng(seed))
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(results))
    matches = match(as_coco(contents), path)
    weights = np.random.default_rng(seed + 100).integers(0, 3, 6)
    copied = data_set(np.random.default_rng(seed), copies=weights)
    for counts, expected in ((np.ones(6, int), (contents, results)), (weights, copied)):
        found = average_precision(matches, counts)
        assert found == pytest.approx(by_pycocotools(*expected), abs=1e-9)


def test_no_detections(tmp_path):
    contents, _ = data_set(np.random.default_rng(0))
    path = tmp_path / "detections.json"
    path.write_text("[]")
    matches = match(as_coco(contents), path)
    assert average_precision(matches, np.ones(6, int)).tolist() == [0] * 10
    assert np.isnan(calibration_error(matches))


def test_draws_have_the_number_of_images():
    draws = draw_images(7, 50)
    assert draws.shape == (50, 7)
    assert (draws.sum(axis=1) == 7).all()
    assert len(np.unique(draws, axis=0)) > 40


def test_a_shared_spread_cancels():
    rng = np.random.default_rng(0)
    baseline = rng.normal(30, 5, (5, 1)) + rng.normal(0, 3, (1, 500))
    low, high = interval_of_difference(baseline + 0.5, baseline)
    assert (low, high) == pytest.approx((0.5, 0.5))
    low, high = interval_of_difference(baseline + rng.normal(0, 1, (5, 1)), baseline)
    assert low < high


def test_calibration_by_hand():
    # Two bins: scores .9 (one of two hits), .3 (none of two); one below the minimum.
    found = ClassMatches(
        np.array([0.9, 0.9, 0.3, 0.3, 0.01]),
        np.zeros(5, int),
        np.array([[True, False, False, False, True]] * 10),
        np.array([3]),
    )
    assert calibration_error([found]) == pytest.approx(100 * (0.4 * 2 + 0.3 * 2) / 4)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_intervals_hold_what_they_promise_with_few_seeds(num_seeds):
    """Drawing five seeds with replacement alone covers the truth in 84 of 100 studies."""
    rng = np.random.default_rng(num_seeds)
    is_covered = []
    for _ in range(400):
        of_seeds = rng.normal(0, 1, (num_seeds, 1))
        low, high = interval_of_difference(of_seeds.repeat(400, axis=1), np.zeros((num_seeds, 400)))
        is_covered.append(low <= 0 <= high)
    assert np.mean(is_covered) > 0.9


def test_a_single_seed_does_not_tell_how_seeds_differ():
    low, high = interval_of_difference(np.full((1, 10), 5.0), np.zeros((1, 10)))
    assert (low, high) == (-np.inf, np.inf)


def test_crowds_are_refused(tmp_path):
    contents, _ = data_set(np.random.default_rng(0))
    contents["annotations"][0]["iscrowd"] = 1
    with pytest.raises(ValueError, match="without crowds"):
        match(as_coco(contents), tmp_path / "detections.json")
