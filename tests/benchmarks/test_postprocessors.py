"""Post-processing of the libraries on one scene, and the scene itself."""

import dataclasses
import math

import pytest
import torch

from atss_d2.modeling.nms import batched_nms
from benchmarks import scenes
from benchmarks.cases.nms import SCENES, STRATEGIES
from benchmarks.models import ATSS, FCOS
from benchmarks.postprocessors import TV_FCOS, check_equal, detections, groups

SIZE, NUM_CLASSES = (192, 256), 6


@pytest.fixture(scope="module")
def found():
    return scenes.predictions(SIZE, NUM_CLASSES, num_objects=40)


def test_without_centerness_all_find_the_same(found):
    group = groups(found, SIZE, NUM_CLASSES)["no centerness"]
    assert len(group) == 3
    assert check_equal(group) > 15
    # Half of an image does not show the other half.
    boxes, scores, classes = detections(group[0])
    assert len(classes.unique()) > 2
    assert (boxes[:, 2] > SIZE[1] / 2).any()
    assert (scores.diff() <= 0).all()


def test_a_batch_has_the_detections_of_its_images(found):
    for name, group in groups(found, SIZE, NUM_CLASSES, num_images=3).items():
        for one, alone in zip(group, groups(found, SIZE, NUM_CLASSES)[name]):
            torch.testing.assert_close(detections(one), detections(alone))


def test_fcos_finds_the_same_where_thresholds_mean_the_same(found):
    """With a centerness of 1, sqrt(score) > sqrt(0.05) is score > 0.05."""
    sure = dataclasses.replace(found, centerness=[torch.full_like(x, 40) for x in found.centerness])
    group = groups(sure, SIZE, NUM_CLASSES)["centerness"]
    assert [p.name for p in group] == [ATSS, FCOS, TV_FCOS]
    with pytest.raises(AssertionError, match="FCOS finds other objects than ATSS"):
        check_equal(group)
    group[1].model.test_score_thresh = group[2].model.score_thresh = math.sqrt(0.05)
    assert check_equal(group) > 15


@pytest.mark.parametrize("kind", SCENES)
@pytest.mark.parametrize("num", [1, 50, 1500])
def test_ways_of_nms_agree(kind, num):
    candidates = SCENES[kind](num)
    assert [len(x) for x in candidates] == [num] * 3
    expected = batched_nms(*candidates, 0.6)
    assert 0 < len(expected) <= num
    if num == 1500:
        assert len(expected) < 300 if kind == "clustered" else len(expected) > 1400
    for strategy in STRATEGIES.values():
        torch.testing.assert_close(strategy(*candidates, 0.6), expected, rtol=0, atol=0)
