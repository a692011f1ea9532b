"""DDODMatcher: the rule by loops, and scenes in which it must not go wrong."""

import math

import pytest
import torch
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling import ATSSMatcher, DDODMatcher, DecodedPredictions
from atss_d2.modeling.scene import build_scene
from tests import matching_scenes, reference_matching
from tests.reference import as_float32, box_iou, sigmoid

STRIDES = (8, 16)
NUM_CLASSES = 3


def random_scene(seed, num_boxes=(4, 0, 3), shape=(7, 9)):
    """Boxes around anchors of two levels; predicted boxes that are near their anchor."""
    rng = torch.Generator().manual_seed(seed)
    sizes = [shape, ((shape[0] + 1) // 2, (shape[1] + 1) // 2)]
    anchors = matching_scenes.grid(sizes, STRIDES, ((4.0, 4.0),))
    num_anchors = sum(map(len, anchors))
    extent = torch.tensor([shape[1], shape[0]]) * 8.0
    gt_boxes, gt_classes = [], []
    for count in num_boxes:
        centers = torch.rand(count, 2, generator=rng) * extent
        halves = 4 + 28 * torch.rand(count, 2, generator=rng)
        gt_boxes.append(torch.cat((centers - halves, centers + halves), dim=1))
        gt_classes.append(torch.randint(NUM_CLASSES, (count,), generator=rng))
    noise = 6 * torch.randn(len(num_boxes), num_anchors, 4, generator=rng)
    predictions = DecodedPredictions(
        2 * torch.randn(len(num_boxes), num_anchors, NUM_CLASSES, generator=rng) - 1,
        torch.cat(anchors) + noise,
    )
    return build_scene(
        anchors, gt_boxes, grid_sizes=sizes, gt_classes=gt_classes, predictions=predictions
    )


def by_loops(scene, alpha):
    """(N, R): the rule, box by box and candidate by candidate; threshold in float64."""
    levels = [level.tolist() for level in scene.anchors]
    centers = [((a[0] + a[2]) / 2, (a[1] + a[3]) / 2) for level in levels for a in level]
    matched = torch.full(scene.predictions.logits.shape[:2], -1)
    best = {}
    for g, (box, n, k) in enumerate(zip(scene.boxes.tolist(), scene.image_idxs, scene.classes)):
        n, k = int(n), int(k)
        candidates = reference_matching.atss_candidates(levels, box, topk=9)
        values = []
        for r in candidates:
            predicted = as_float32(scene.predictions.boxes[n, r].tolist())
            iou = float(box_iou(predicted, as_float32(box)))
            score = sigmoid(float(scene.predictions.logits[n, r, k]))
            values.append(score ** (1 - alpha) * iou**alpha)
        mean = math.fsum(values) / len(values)
        variance = math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)
        for r, value in zip(candidates, values, strict=True):
            x, y = centers[r]
            is_inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            is_positive = is_inside and value >= mean + math.sqrt(variance)
            if is_positive and value > best.get((n, r), 0):
                best[n, r] = value
                matched[n, r] = g
    return matched


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    alphas=st.tuples(st.sampled_from([0.0, 0.5, 0.8, 1.0]), st.sampled_from([0.3, 0.5, 1.0])),
)
def test_labels_are_those_of_loops(seed, alphas):
    scene = random_scene(seed)
    found = DDODMatcher(cls_alpha=alphas[0], box_alpha=alphas[1]).assign(scene)
    assert torch.equal(found.matched_idxs, by_loops(scene, alphas[0]))
    assert torch.equal(found.box_matched_idxs, by_loops(scene, alphas[1]))
    per_image = (found.box_matched_idxs >= 0).sum() / 3
    torch.testing.assert_close(found.stats["num_box_positives"], per_image)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_predicting_the_anchors_with_equal_scores_it_is_atss(seed):
    """With a = 1, the quality is the IoU of the anchor."""
    scene = random_scene(seed)
    boxes = torch.cat(scene.anchors).expand(3, -1, 4)
    predictions = DecodedPredictions(torch.zeros_like(scene.predictions.logits), boxes)
    found = DDODMatcher(cls_alpha=1.0).assign(scene._replace(predictions=predictions))
    expected = ATSSMatcher().assign(scene)
    assert torch.equal(found.matched_idxs, expected.matched_idxs)
    torch.testing.assert_close(found.stats["mean_threshold"], expected.stats["mean_threshold"])


def test_without_overlap_or_score_nothing_is_positive():
    """All candidates of such a box have the quality 0, and so the threshold."""
    scene = random_scene(0)
    far = scene.predictions._replace(boxes=scene.predictions.boxes + 1e4)
    low = scene.predictions._replace(logits=torch.full_like(scene.predictions.logits, -1e4))
    empty = scene.predictions._replace(boxes=scene.predictions.boxes[..., [0, 1, 0, 1]])
    for predictions in (far, low, empty):
        found = DDODMatcher().assign(scene._replace(predictions=predictions))
        assert (found.matched_idxs == -1).all()
        assert (found.box_matched_idxs == -1).all()
    assert (DDODMatcher().assign(scene).matched_idxs >= 0).any()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 3e38])
def test_broken_predictions_of_some_anchors_leave_the_others_their_boxes(number):
    scene = random_scene(1)
    healthy = DDODMatcher().assign(scene)
    n, r = (healthy.matched_idxs >= 0).nonzero()[0].tolist()
    for part in ("logits", "boxes"):
        predictions = getattr(scene.predictions, part).clone()
        predictions[n, r] = number
        broken = scene._replace(predictions=scene.predictions._replace(**{part: predictions}))
        found = DDODMatcher().assign(broken)
        others = torch.arange(3) != n
        assert torch.equal(found.matched_idxs[others], healthy.matched_idxs[others])
        box = healthy.matched_idxs[n, r]
        assert (found.matched_idxs == box).any()
        if not (number > 0 and part == "logits"):  # a score of 1 may be positive
            assert found.matched_idxs[n, r] == -1


def test_boxes_without_area_and_ignore_regions_receive_no_positives():
    scene = random_scene(2, num_boxes=(5,))
    is_region = torch.tensor([True, False, False, False, False])
    boxes = scene.boxes.clone()
    boxes[1, 2] = boxes[1, 0]
    changed = build_scene(
        scene.anchors,
        [Boxes(boxes)],
        [is_region],
        gt_classes=[scene.classes],
        predictions=scene.predictions,
    )
    found = DDODMatcher(ignore_ioa_thresh=0.3).assign(changed)
    for matched in (found.matched_idxs, found.box_matched_idxs):
        assert set(matched.unique().tolist()) <= {-2, -1, 2, 3, 4}
        assert (matched >= 0).any()
    assert (found.matched_idxs == -2).any()


def test_scenes_without_boxes():
    found = DDODMatcher().assign(random_scene(0, num_boxes=(0, 0)))
    assert (found.matched_idxs == -1).all()
    assert (found.box_matched_idxs == -1).all()
    assert all(value == 0 for value in found.stats.values())


def test_selection_has_no_gradient():
    scene = random_scene(0)
    predictions = DecodedPredictions(*(x.requires_grad_() for x in scene.predictions[:2]))
    found = DDODMatcher().assign(scene._replace(predictions=predictions))
    assert not any(value.requires_grad for value in found.stats.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cls_alpha": 1.5}, "cls_alpha must be between 0 and 1, got 1.5"),
        ({"box_alpha": -0.1}, "box_alpha must be between 0 and 1, got -0.1"),
        ({"metric": "giou"}, 'metric="giou" has no power if it is negative: leave out metric'),
        ({"topk": 0}, "topk must be >= 1"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        DDODMatcher(**arguments)


def test_it_says_that_it_needs_predictions():
    with pytest.raises(ValueError, match=r"DDODMatcher selects by predictions: give scene\.pred"):
        DDODMatcher()([torch.zeros(1, 4)], [torch.zeros(1, 4)])
