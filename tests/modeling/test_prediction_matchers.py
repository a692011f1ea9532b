"""The rules that see predictions: published labels, loops, and what must change nothing."""

import math
import warnings

import pytest
import torch
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from atss_d2.modeling import ATSSMatcher, DDODMatcher, PAAMatcher, Predictions
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.matchers import (
    BACKGROUND,
    IGNORED,
    DynamicSoftLabelMatcher,
    SimOTAMatcher,
    TaskAlignedMatcher,
    dynamic_k,
    predicted,
    selection,
)
from atss_d2.modeling.nouns import DecodedPredictions
from atss_d2.modeling.predictions import decode_predictions
from atss_d2.modeling.scene import build_scene
from tests.allocations import Allocations
from tests.detector import BOXES, build, image
from tests.extensions.soft import TaskAlignedMatcher as MatcherOfAUser
from tests.matching_scenes import grid
from tests.reference import published_quality
from tests.reference_prediction_matching import LOOPS

RULES = {
    "tal": TaskAlignedMatcher,
    "simota": SimOTAMatcher,
    "dsla": DynamicSoftLabelMatcher,
}
MMDET = {"tal": {}, "simota": {"center_radius": 2.5, "inside_box": True}, "dsla": {}}
all_rules = pytest.mark.parametrize("rule", RULES)
quick = settings(max_examples=15, derandomize=True)


def strides_of(rule, strides):
    return {} if rule == "tal" else {"strides": strides}


# ------------------------------------------------------------------------------ published


def published_scene(logits, boxes, images):
    numbers = published_quality()
    anchors = torch.tensor(numbers["anchors"])
    strides = numbers["strides"].tolist()
    sides = anchors[:, 2] - anchors[:, 0]
    levels = [anchors[sides == 8 * stride] for stride in strides]
    assert torch.equal(torch.cat(levels), anchors)
    scene = build_scene(
        levels,
        [torch.tensor(numbers[f"gt_boxes_{i}"]) for i in images],
        gt_classes=[torch.tensor(numbers[f"gt_classes_{i}"]) for i in images],
        predictions=DecodedPredictions(logits, boxes),
    )
    return scene, strides


@all_rules
def test_assigns_as_published(rule):
    numbers = published_quality()
    logits, boxes = (torch.tensor(numbers[f"assign.{x}"])[None] for x in ("logits", "pred_boxes"))
    scene, strides = published_scene(logits, boxes, [1])
    matched = RULES[rule](**strides_of(rule, strides), **MMDET[rule]).assign(scene).matched_idxs[0]
    expected = torch.tensor(numbers[f"assign.{rule}.assigned"])
    assert (expected >= 0).sum() > 40
    assert torch.equal(matched, expected)
    pairs = predicted.PredictedPairs(scene)
    slots = (matched >= 0).nonzero()[:, 0]
    ious = pairs.ious(matched[slots], slots)
    torch.testing.assert_close(ious, torch.tensor(numbers[f"assign.{rule}.iou"])[slots])
    if rule == "tal":
        alignments = pairs.logits(matched[slots], slots).sigmoid() * ious**6
        torch.testing.assert_close(
            alignments, torch.tensor(numbers["assign.tal.metric"])[slots], rtol=1e-5, atol=0
        )


def test_aligns_the_predictions_of_tood_as_published():
    """The head gives probabilities, and boxes in strides."""
    numbers = published_quality()

    def by_anchor(name, scale=(1,) * 5):
        maps = [torch.tensor(numbers[f"tood.{name}_{i}"]).flatten(2) * scale[i] for i in range(5)]
        return torch.cat(maps, dim=2).transpose(1, 2)

    boxes = by_anchor("reg", numbers["strides"].tolist())
    scene, _ = published_scene(by_anchor("cls").double().logit().float(), boxes, [0, 1])
    matched, soft, stats, _ = TaskAlignedMatcher().assign(scene)
    first = [0, len(numbers["gt_boxes_0"])]
    for n in range(2):
        expected = torch.tensor(numbers[f"tood.tal.assigned_{n}"])
        expected = torch.where(expected >= 0, expected + first[n], expected)
        assert (expected >= 0).sum() > 20
        assert torch.equal(matched[n], expected)
    expected = torch.tensor(numbers["tood.tal.targets"])
    torch.testing.assert_close(soft, expected, rtol=1e-5, atol=1e-7)
    assert 2 * stats["sum_soft"].item() == pytest.approx(numbers["tood.tal.cls_norm"], rel=1e-5)


# ---------------------------------------------------------------------------------- loops


def random_scene(seed, counts, shapes=((6, 7), (3, 4), (2, 2)), is_round=False, **options):
    """Predictions near the anchors; round numbers make ties."""
    generator = torch.Generator().manual_seed(seed)
    strides = [8 * 2**i for i in range(len(shapes))]
    levels = grid(shapes, strides, [(4.0, 4.0)])
    anchors = torch.cat(levels)

    def boxes_of(num):
        corners = 64 * torch.rand(num, 2, generator=generator) - 8
        return torch.cat((corners, corners + 50 * torch.rand(num, 2, generator=generator)), dim=1)

    boxes = [boxes_of(num) for num in counts]
    shifts = torch.randn(len(counts), len(anchors), 4, generator=generator)
    found = anchors + shifts * (anchors[:, 2:3] - anchors[:, :1]) / 4
    logits = 2 * torch.randn(len(counts), len(anchors), 3, generator=generator) - 1
    if is_round:
        boxes = [(b / 8).round() * 8 for b in boxes]  # some without area
        found, logits = (found / 16).round() * 16, logits.round()
    scene = build_scene(
        levels,
        boxes,
        gt_classes=[torch.randint(3, (num,), generator=generator) for num in counts],
        predictions=DecodedPredictions(logits, found),
        **options,
    )
    return scene, strides


def by_loops(rule, scene, **options):
    """Labels (N, R) and soft targets; ignore regions have no area."""
    levels = [level.tolist() for level in scene.anchors]
    matched, soft = [], []
    for n in range(scene.num_images):
        rows = (scene.image_idxs == n).nonzero()[:, 0].tolist()
        result = LOOPS[rule](
            levels,
            scene.boxes[rows].tolist(),
            scene.classes[rows].tolist(),
            scene.predictions.logits[n].tolist(),
            scene.predictions.boxes[n].tolist(),
            **options,
        )
        idxs, values = result if rule == "tal" else (result, None)
        matched.append([rows[i] if i >= 0 else i for i in idxs])
        soft.append(values)
    num_anchors = sum(map(len, scene.anchors))
    shape = scene.num_images, num_anchors
    soft = torch.tensor(soft).view(shape) if rule == "tal" else None
    return torch.tensor(matched, dtype=torch.int64).view(shape), soft


OPTIONS = {
    "tal": st.fixed_dictionaries(
        {
            "topk": st.sampled_from([1, 3, 13, 1000]),
            "alpha": st.sampled_from([1.0, 0.5, 0.0]),
            "beta": st.sampled_from([6.0, 1.0, 0.5]),
        }
    ),
    "simota": st.fixed_dictionaries(
        {
            "topk": st.sampled_from([1, 4, 10, 1000]),
            "center_radius": st.sampled_from([0.5, 1.5, 2.5]),
            "inside_box": st.booleans(),
            "iou_weight": st.sampled_from([3.0, 0.0]),
        }
    ),
    "dsla": st.fixed_dictionaries(
        {
            "topk": st.sampled_from([1, 4, 13, 1000]),
            "center_radius": st.sampled_from([3.0, 1.0]),
            "iou_weight": st.sampled_from([3.0, 0.5]),
        }
    ),
}
some_shapes = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3)
some_counts = st.lists(st.integers(0, 6), max_size=3)


def draw_scene(data, **options):
    return random_scene(
        data.draw(st.integers(0, 10**6)),
        data.draw(some_counts),
        data.draw(some_shapes),
        data.draw(st.booleans()),
        **options,
    )


@all_rules
@settings(max_examples=40, derandomize=True)
@given(data=st.data())
def test_equals_the_loops(rule, data):
    scene, strides = draw_scene(data)
    options = {**data.draw(OPTIONS[rule]), **strides_of(rule, strides)}
    matched, soft, *_ = RULES[rule](**options).assign(scene)
    expected, expected_soft = by_loops(rule, scene, **options)
    assert matched.dtype == torch.int64
    assert torch.equal(matched, expected)
    if rule == "tal":
        torch.testing.assert_close(soft, expected_soft)
        assert ((soft > 0) <= (matched >= 0)).all()
    else:
        assert soft is None


@all_rules
@pytest.mark.parametrize("is_round", [False, True])
def test_equals_the_loops_in_a_crowd(rule, is_round):
    """Boxes contend, anchors tie, k differs, and blocks are pruned: the loops say which matter."""
    scene, strides = random_scene(1, [25, 0, 14], [(12, 14), (6, 7), (3, 4)], is_round)
    options = strides_of(rule, strides)
    matched, _, stats, _ = RULES[rule](**options).assign(scene)
    assert torch.equal(matched, by_loops(rule, scene, **options)[0])
    assert len(matched.unique()) > 20
    assert (matched[1] == BACKGROUND).all()
    if rule != "tal":
        assert stats["num_contested"] > 2
        assert 1 < stats["mean_k"] < 10


@pytest.mark.parametrize("seed", range(3))
def test_alignment_equals_that_of_all_pairs(seed):
    """On more anchors than the loops can compare."""
    scene, _ = random_scene(seed, [40, 3, 25], [(48, 40), (24, 20), (12, 10)], seed == 2)
    found, expected = TaskAlignedMatcher().assign(scene), MatcherOfAUser().assign(scene)
    assert (found.matched_idxs >= 0).sum() > 50
    assert_same(found, expected)


# ------------------------------------------------------------- what must change nothing


def assert_same(found, expected):
    assert torch.equal(found.matched_idxs, expected.matched_idxs)
    torch.testing.assert_close(found.soft, expected.soft, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(dict(found.stats), dict(expected.stats), rtol=1e-6, atol=1e-9)


@all_rules
@quick
@given(data=st.data(), max_entries=st.sampled_from([1, 100, 1000]))
def test_chunks_and_the_way_of_a_gpu_change_nothing(rule, data, max_entries):
    scene, strides = draw_scene(data)
    matcher = RULES[rule](**{**data.draw(OPTIONS[rule]), **strides_of(rule, strides)})
    expected = matcher.assign(scene)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(selection.MAX_CHUNK_ENTRIES, "cpu", max_entries)
        assert_same(matcher.assign(scene), expected)
        for module in (predicted, dynamic_k):
            patch.setattr(module, "must_not_wait", lambda _: True)
        assert_same(matcher.assign(scene), expected)


@all_rules
@pytest.mark.parametrize("block_size", [1, 3, 64])
def test_blocks_change_nothing(rule, block_size, monkeypatch):
    scene, strides = random_scene(1, [9, 0, 14], [(12, 14), (6, 7), (3, 4)])
    matcher = RULES[rule](**strides_of(rule, strides))
    expected = matcher.assign(scene)
    monkeypatch.setattr(predicted, "BLOCK_SIZE", block_size)
    monkeypatch.setattr(predicted, "_FIRST_BLOCKS", 2)
    assert_same(matcher.assign(scene), expected)


@all_rules
def test_not_all_pairs_are_compared(rule, monkeypatch):
    scene, strides = random_scene(3, [20], [(32, 32)])
    compared = []
    ious = predicted.PredictedPairs.ious
    monkeypatch.setattr(
        predicted.PredictedPairs,
        "ious",
        lambda self, box_idxs, slots: compared.append(slots.numel()) or ious(self, box_idxs, slots),
    )
    RULES[rule](**strides_of(rule, strides)).assign(scene)
    passes = 1 if rule == "tal" else 2
    assert sum(compared) < passes * 20 * 32 * 32 * 0.6


@all_rules
def test_images_do_not_see_each_other(rule):
    scene, strides = random_scene(7, [5, 0, 8])
    matcher = RULES[rule](**strides_of(rule, strides))
    together = matcher.assign(scene)
    logits, found, _ = scene.predictions
    counts = [0, 5, 5, 13]
    for order in ([2], [0], [1], [2, 0], [0, 0, 1, 2, 2]):
        rows = [slice(counts[n], counts[n + 1]) for n in order]
        alone = build_scene(
            scene.anchors,
            [scene.boxes[r] for r in rows],
            gt_classes=[scene.classes[r] for r in rows],
            predictions=DecodedPredictions(logits[order], found[order]),
        )
        matched, soft, *_ = matcher.assign(alone)
        first = 0
        for row, n in enumerate(order):
            local = torch.where(matched[row] >= 0, matched[row] - first, matched[row])
            expected = together.matched_idxs[n]
            expected = torch.where(expected >= 0, expected - counts[n], expected)
            assert torch.equal(local, expected)
            if rule == "tal":
                torch.testing.assert_close(soft[row], together.soft[n])
            first += counts[n + 1] - counts[n]


@all_rules
def test_nothing_to_match(rule):
    for counts in ([], [0], [0, 0]):
        scene, strides = random_scene(0, counts)
        matched, soft, stats, _ = RULES[rule](**strides_of(rule, strides)).assign(scene)
        assert matched.shape == (len(counts), 58)
        assert (matched == BACKGROUND).all()
        assert soft is None or not soft.any()
        assert all(value == 0 for value in stats.values())


@all_rules
@pytest.mark.parametrize(
    "box",
    [[10.0, 10, 10, 30], [12.0, 12, 12, 12], [30.0, 30, 10, 10], [0.0, 0, 0, 0], [math.nan] * 4],
    ids=str,
)
@pytest.mark.parametrize("is_region", [False, True])
def test_boxes_without_area_get_nothing_and_disturb_no_other(rule, box, is_region):
    scene, strides = random_scene(5, [4])
    both = build_scene(
        scene.anchors,
        [torch.cat((torch.tensor([box]), scene.boxes))],
        [torch.tensor([is_region, *[False] * 4])],
        gt_classes=[torch.cat((torch.tensor([1]), scene.classes))],
        predictions=scene.predictions,
    )
    matcher = RULES[rule](**strides_of(rule, strides))
    alone, found = matcher.assign(scene), matcher.assign(both)
    matched = torch.where(alone.matched_idxs >= 0, alone.matched_idxs + 1, alone.matched_idxs)
    assert (matched >= 0).any()
    assert_same(found, alone._replace(matched_idxs=matched))


@all_rules
def test_ignore_regions(rule):
    scene, strides = random_scene(5, [4])
    region = torch.tensor([[0.0, 0, 40, 40]])
    covered = build_scene(
        scene.anchors,
        [torch.cat((scene.boxes, region))],
        [torch.tensor([False] * 4 + [True])],
        gt_classes=[torch.cat((scene.classes, torch.tensor([0])))],
        predictions=scene.predictions,
    )
    options = strides_of(rule, strides)
    plain = RULES[rule](**options).assign(scene).matched_idxs
    found = RULES[rule](ignore_ioa_thresh=0.5, **options).assign(covered)
    matched = found.matched_idxs
    is_ignored = matched == IGNORED
    assert is_ignored.sum() == found.stats["num_ignored"] > 3
    assert (plain[is_ignored] == BACKGROUND).all()
    assert torch.equal(matched.masked_fill(is_ignored, BACKGROUND), plain)


# -------------------------------------------------------------------------- not finite


@all_rules
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_not_finite_match_nothing(rule, value):
    scene, strides = random_scene(0, [4, 7])
    matcher = RULES[rule](**strides_of(rule, strides))
    logits, found = (x.clone() for x in scene.predictions[:2])
    found[:, 1::3, 2] = value
    poisoned = torch.zeros(2, 58, dtype=torch.bool)
    poisoned[:, 1::3] = True
    if rule == "tal":  # the others also look at the logits of other classes
        logits[:, ::3] = value
        if value != math.inf:  # a score of 1 is one
            poisoned[:, ::3] = True
    else:
        logits[:, ::3, :] = math.nan
        poisoned[:, ::3] = True
    matched, soft, stats, _ = matcher.assign(
        scene._replace(predictions=DecodedPredictions(logits, found))
    )
    assert soft is None or soft.isfinite().all()
    assert all(x.isfinite() for x in stats.values())
    assert (matched >= 0).any()
    if rule == "tal":
        assert (matched[poisoned] == BACKGROUND).all()
    else:  # a box that overlaps nothing may still be the cheapest, as long as its scores are
        assert (matched[:, ::3] == BACKGROUND).all()
    everything = torch.full_like(logits, value), torch.full_like(found, value)
    matched, *_ = matcher.assign(scene._replace(predictions=DecodedPredictions(*everything)))
    assert (matched == BACKGROUND).all()


@all_rules
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_extreme_predictions(rule, scale):
    scene, strides = random_scene(0, [4, 7])
    logits, found, _ = scene.predictions
    extreme = DecodedPredictions((logits * scale).clamp(-1e4, 1e4), found * scale)
    matched, soft, stats, _ = RULES[rule](**strides_of(rule, strides)).assign(
        scene._replace(predictions=extreme)
    )
    assert matched.min() >= -1
    assert soft is None or soft.isfinite().all()
    assert all(x.isfinite() for x in stats.values())


@all_rules
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(rule, dtype):
    scene, strides = random_scene(2, [6])
    generator = torch.Generator().manual_seed(0)
    sizes = [len(level) for level in scene.anchors]
    maps = Predictions(
        [torch.randn(1, n, 3, generator=generator).to(dtype) for n in sizes],
        [torch.rand(1, n, 4, generator=generator).mul(3).to(dtype) for n in sizes],
    )
    coder = PointDistances(anchor_scale=4.0)
    decoded = decode_predictions(maps, scene.anchors, coder)
    assert decoded.logits.dtype == decoded.boxes.dtype == torch.float32
    assert not decoded.boxes.requires_grad
    matcher = RULES[rule](**strides_of(rule, strides))
    expected = matcher.assign(scene._replace(predictions=decoded))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matcher.assign(scene._replace(predictions=decoded))
    assert (expected.matched_idxs >= 0).any()
    assert_same(found, expected)


# -------------------------------------------------------------------------------- by hand


def hand_scene(anchors, boxes, logits, found, **options):
    anchors = torch.tensor(anchors, dtype=torch.float32)
    return build_scene(
        [anchors],
        [torch.tensor(boxes, dtype=torch.float32)],
        gt_classes=[torch.zeros(len(boxes), dtype=torch.int64)],
        predictions=DecodedPredictions(
            torch.tensor(logits, dtype=torch.float32).view(1, -1, 1),
            torch.tensor(found, dtype=torch.float32)[None],
        ),
        **options,
    )


def test_alignment_by_hand():
    """Two anchors inside one box; scores 1/2 and 1/2, IoUs 1 and 1/2. The third is outside."""
    box = [0, 0, 8, 8]
    anchors = [[1, 1, 5, 5], [3, 3, 7, 7], [8, 8, 12, 12]]
    scene = hand_scene(anchors, [box], [0, 0, 0], [box, [0, 0, 8, 4], box])
    matched, soft, stats, _ = TaskAlignedMatcher(beta=2.0).assign(scene)
    assert matched.tolist() == [[0, 0, -1]]
    # Alignments 1/2 x 1^2 and 1/2 x (1/2)^2; the best is scaled to the best IoU, 1.
    assert soft[0].tolist() == pytest.approx([1, 1 / 4, 0], rel=1e-5)
    assert stats["sum_soft"] == pytest.approx(1.25, rel=1e-5)
    # The one outside still takes one of the two places.
    matched, soft, *_ = TaskAlignedMatcher(topk=2, beta=2.0).assign(scene)
    assert matched.tolist() == [[0, -1, -1]]


def test_what_is_not_aligned_is_not_positive():
    """Anchors with t = 0 are never positive: a box may get none."""
    anchors = [[1, 1, 5, 5], [3, 3, 7, 7]]
    scene = hand_scene(anchors, [[0, 0, 8, 8]], [5, 5], [[9, 9, 12, 12], [0, 0, 0, 0]])
    matched, soft, *_ = TaskAlignedMatcher().assign(scene)
    assert matched.tolist() == [[-1, -1]]
    assert soft.tolist() == [[0, 0]]
    # exp(-200) is 0 in float32.
    scene = hand_scene(anchors, [[0, 0, 8, 8]], [-200, 0], [[0, 0, 8, 8], [0, 0, 8, 4]])
    assert TaskAlignedMatcher().assign(scene).matched_idxs.tolist() == [[-1, 0]]


def test_a_center_on_the_border_is_outside():
    anchors = [[-2, 2, 2, 6], [-1.97, 2, 2, 6]]  # centers at x = 0 and 0.015
    scene = hand_scene(anchors, [[0, 0, 8, 8]], [0, 0], [[0, 0, 8, 8]] * 2)
    assert TaskAlignedMatcher().assign(scene).matched_idxs.tolist() == [[-1, 0]]


@pytest.mark.parametrize("rule", ["simota", "dsla"])
def test_a_contested_anchor_goes_to_the_cheapest_of_all_boxes(rule):
    """Also to one that did not want it: trap 9 of the published numbers."""
    anchors = [[8, 8, 24, 24]] * 2
    boxes = [[0, 0, 28, height] for height in (25, 24, 30)]
    found = [[0, 0, 28, height] for height in (28, 31)]
    matcher = RULES[rule](strides=[16], topk=1)  # k = 1

    def matched(boxes):
        return matcher.assign(hand_scene(anchors, boxes, [0, 0], found)).matched_idxs[0].tolist()

    # Two boxes want the first anchor, the third wants the second.
    assert [matched([box]) for box in boxes] == [[0, -1], [0, -1], [-1, 0]]
    # Uncontested, it is not taken away; contested, it goes to the third, with 28/30.
    assert matched(boxes[::2]) == [0, 1]
    assert matched(boxes) == [2, 2]


def test_anchors_far_from_the_center_come_last():
    """Strides of 8: the square reaches 12 px (YOLOX) or 20 px (mmdetection) from (40, 40)."""
    xs = [40, 50, 58, 70]
    anchors = [[x - 4, 36, x + 4, 44] for x in xs]
    box = [0, 20, 80, 60]
    found = [[0, 20, 80, 60 - 2 * i] for i in (3, 2, 1, 0)]  # better farther away
    scene = hand_scene(anchors, [box], [0] * 4, found)

    def positives(**options):
        matched = SimOTAMatcher(strides=[8], **options).assign(scene).matched_idxs
        return (matched[0] == 0).nonzero()[:, 0].tolist()

    # Two candidates: k = int(0.85 + 0.9) = 1. Three: k = int(0.85 + 0.9 + 0.95) = 2.
    assert positives() == [1]
    assert positives(center_radius=2.5) == [1, 2]
    # All are inside a box: k = 3. The cheapest, at x = 70, comes after those near the center.
    assert positives(center_radius=2.5, inside_box=True) == [0, 1, 2]
    assert positives(inside_box=True) == [0, 1, 3]
    assert positives(inside_box=True, topk=1) == [1]


def test_a_box_without_anchors_near_its_center_takes_those_of_others():
    anchors = [[36, 36, 44, 44], [76, 36, 84, 44]]
    boxes = [[30, 30, 50, 50], [58, 38, 62, 42]]  # the second holds no center, in 1.5 strides none
    scene = hand_scene(anchors, boxes, [0, 3], [[30, 30, 50, 50], [58, 38, 62, 43]])
    matched = SimOTAMatcher(strides=[8], center_radius=1.5).assign(scene).matched_idxs
    assert matched.tolist() == [[0, -1]]  # anchor 0 is the only candidate, and cheaper for box 0
    matched = SimOTAMatcher(strides=[8], center_radius=2.6).assign(scene).matched_idxs
    assert matched.tolist() == [[0, 1]]


# ------------------------------------------------------------------- warm-up, devices, memory


def test_the_warm_up_is_a_matter_of_the_iteration():
    scene, _ = random_scene(3, [4, 6])
    atss = ATSSMatcher(topk=3)
    matcher = TaskAlignedMatcher(warm_up=atss, warm_up_iterations=10)
    matcher.bind(1, (8, 16, 32))
    assert atss.num_anchors == 1
    full = TaskAlignedMatcher().assign(scene)
    for iteration in (0, 9):
        found = matcher.assign(scene._replace(iteration=iteration))
        assert found.soft is None
        assert torch.equal(found.matched_idxs, atss.assign(scene).matched_idxs)
        assert set(found.stats) == {"mean_threshold"}
    for iteration in (10, 10**6, None):
        assert_same(matcher.assign(scene._replace(iteration=iteration)), full)


def test_the_rule_of_the_warm_up_keeps_its_ignore_regions():
    atss = ATSSMatcher(topk=3, ignore_ioa_thresh=0.5)
    matcher = TaskAlignedMatcher(warm_up=atss, warm_up_iterations=10)
    scene, _ = random_scene(3, [4, 6])
    regions = torch.zeros_like(scene.boxes)
    regions[0] = torch.tensor([0.0, 0, 60, 60])
    scene = scene._replace(regions=regions, iteration=0)
    found = matcher.assign(scene)
    assert torch.equal(found.matched_idxs, atss.assign(scene).matched_idxs)
    assert (found.matched_idxs == IGNORED).any()


@pytest.mark.parametrize("rule", [*RULES.values(), PAAMatcher, DDODMatcher])
def test_the_classes_of_the_boxes_must_be_known(rule):
    scene, _ = random_scene(3, [4, 6])
    with pytest.raises(ValueError, match="needs the classes of the boxes: build the scene with"):
        rule().assign(scene._replace(classes=None))


@all_rules
def test_a_detector_trains_with_it(rule):
    """The rule is bound to the strides, gets decoded predictions, and its stats are logged."""
    model = build()
    model.matcher = RULES[rule]()
    with EventStorage() as storage:
        losses = model([image(BOXES, [i % 2 for i in range(len(BOXES))]), image([], [])])
        logged = {"sum_soft"} if rule == "tal" else {"mean_k", "num_contested"}
        assert {f"atss/{name}" for name in logged} <= set(storage.latest())
        assert storage.latest()["atss/num_positives"][0] > 1
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


@all_rules
def test_fake_cuda_tensors(rule):
    """A fake tensor has a device, but no values: what reads one, or mixes devices, fails."""
    scene, strides = random_scene(2, [6, 0, 3])
    matcher = RULES[rule](**strides_of(rule, strides))
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        warnings.filterwarnings("ignore", "User provided device_type of 'cuda'")

        def to_gpu(x):
            return mode.from_tensor(x).cuda() if isinstance(x, torch.Tensor) else x

        fake = scene._replace(
            anchors=[to_gpu(x) for x in scene.anchors],
            boxes=to_gpu(scene.boxes),
            image_idxs=to_gpu(scene.image_idxs),
            classes=to_gpu(scene.classes),
            predictions=DecodedPredictions(*map(to_gpu, scene.predictions)),
        )
        matched, soft, stats, _ = matcher.assign(fake)
    assert (matched.device.type, matched.dtype, matched.shape) == ("cuda", torch.int64, (3, 58))
    assert soft is None or (soft.device.type, soft.shape) == ("cuda", (3, 58))
    assert all((x.device.type, x.dim()) == ("cuda", 0) for x in stats.values())


@all_rules
@pytest.mark.parametrize("on_gpu", [False, True])
def test_memory_does_not_grow_with_boxes_times_anchors(rule, on_gpu, monkeypatch):
    for module in (predicted, dynamic_k):
        monkeypatch.setattr(module, "must_not_wait", lambda _: on_gpu)
    monkeypatch.setitem(selection.MAX_CHUNK_ENTRIES, "cpu", 2**14)
    peaks = []
    for count in (50, 400):
        scene, strides = random_scene(0, [count], [(32, 32), (16, 16)])
        matcher = RULES[rule](**strides_of(rule, strides))
        with Allocations() as allocations:
            matcher.assign(scene)
        peaks.append(allocations.peak_bytes)
    more_pairs = 350 * (32 * 32 + 16 * 16)
    assert peaks[1] - peaks[0] < 4 * more_pairs  # one float of each pair


# --------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("tal", {"topk": 0}, "topk must be >= 1, got 0"),
        ("tal", {"alpha": -1.0}, "alpha must be >= 0, got -1.0"),
        ("tal", {"beta": 0.0}, "beta must be > 0, got 0.0"),
        ("tal", {"warm_up_iterations": 5}, "there is no rule for them: set warm_up"),
        ("tal", {"warm_up_iterations": -1}, "warm_up_iterations must be >= 0, got -1"),
        ("tal", {"center_epsilon": -1.0}, "center_epsilon must be >= 0"),
        ("simota", {"topk": 0}, "topk must be >= 1, got 0"),
        ("simota", {"center_radius": 0.0}, "center_radius must be > 0, got 0.0"),
        ("simota", {"iou_weight": -1.0}, "iou_weight must be >= 0, got -1.0"),
        ("dsla", {"strides": []}, r"strides must be positive, got \[\]"),
        ("dsla", {"center_radius": -1.0}, "center_radius must be >= 0, got -1.0"),
    ],
)
def test_arguments_that_are_wrong(rule, options, message):
    with pytest.raises(ValueError, match=message):
        RULES[rule](**options)


def test_what_a_rule_needs():
    scene, _ = random_scene(0, [2])
    with pytest.raises(ValueError, match="SimOTAMatcher selects by predictions"):
        SimOTAMatcher(strides=[8, 16, 32])(scene.anchors, [scene.boxes])
    for strides in (None, [8, 16]):
        with pytest.raises(ValueError, match="there are 3 levels of anchors: give it the stride"):
            SimOTAMatcher(strides=strides).assign(scene)
    with pytest.raises(ValueError, match="build the scene with gt_classes"):
        TaskAlignedMatcher().assign(scene._replace(classes=None))
    matcher = DynamicSoftLabelMatcher()
    matcher.bind(1, [8, 16, 32])
    with pytest.raises(ValueError, match="the model has strides="):
        matcher.bind(1, [4, 8, 16])
