"""Rules that see predictions as mmdetection computes them, against loops."""

import pytest
import torch

from atss_d2.modeling.geometry import box_centers
from benchmarks import published_rules, scenes
from tests.matching_scenes import grid
from tests.reference_prediction_matching import sim_ota_match, task_aligned_match


@pytest.mark.parametrize("seed", range(10))
def test_equals_the_loops(seed):
    strides = [8, 16, 32]
    levels = grid([(8, 10), (4, 5), (2, 3)], strides, sides=((4.0, 4.0),))
    anchors = torch.cat(levels)
    generator = torch.Generator().manual_seed(seed)
    boxes = scenes.random_boxes(2 + seed % 6, (64, 80), seed)
    classes = scenes.random_classes(len(boxes), 3, seed)
    logits = torch.randn(len(anchors), 3, generator=generator)
    shifts = torch.randn(len(anchors), 4, generator=generator)
    predicted = anchors + 2 * shifts
    scene = (
        [level.tolist() for level in levels],
        *(x.tolist() for x in (boxes, classes, logits, predicted)),
    )
    expected, expected_soft = task_aligned_match(*scene)
    centers = box_centers(anchors)
    matched, soft = published_rules.task_aligned(centers, logits, predicted, boxes, classes)
    assert matched.tolist() == expected
    assert soft.tolist() == pytest.approx(expected_soft, rel=1e-4, abs=1e-7)
    assert max(expected) >= 0

    expected = sim_ota_match(*scene, strides=strides, center_radius=2.5, inside_box=True)
    strides = (anchors[:, 2] - anchors[:, 0]) / 4
    matched = published_rules.sim_ota(centers, strides, logits, predicted, boxes, classes)
    assert matched.tolist() == expected
