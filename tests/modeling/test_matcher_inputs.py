"""What every matcher takes: types, modes, devices, ignore regions, and errors that say what is
wrong."""

import re

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes

from atss_d2.modeling.matchers import BACKGROUND, IGNORED, DenseMatcher
from tests.matching_scenes import RULES, by_loops, grid, options_of, simple, stats_of

all_rules = pytest.mark.parametrize("rule", RULES)


def small_scene():
    anchors = grid([(6, 6), (3, 3)], [8, 16], [(2, 2)])
    return anchors, [torch.tensor([[3.0, 4, 30, 21], [7, 1, 17, 45]]), torch.zeros(0, 4)]


# ------------------------------------------------------------------- types, modes, devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_other_number_types_are_measured_in_float32(dtype):
    anchors, gt_boxes = small_scene()  # whole numbers below 256: exact in every type
    matcher = simple("atss", num_levels=2)
    matched = matcher([a.to(dtype) for a in anchors], [b.to(dtype) for b in gt_boxes])
    assert torch.equal(matched, matcher(anchors, gt_boxes))
    assert (matched >= 0).any()


@all_rules
def test_anchors_of_detectron2s_generator(rule):
    generator = DefaultAnchorGenerator(
        sizes=[[16, 20], [32, 40]], aspect_ratios=[0.5, 1.0, 2.0], strides=[8, 16], offset=0.5
    )
    anchors = generator([torch.zeros(1, 1, 5, 6), torch.zeros(1, 1, 3, 3)])
    boxes = torch.tensor([[3.0, 4, 30, 21], [7, 1, 17, 39]])
    matcher = simple(rule, num_levels=2, num_anchors=6)
    matched = matcher(anchors, [Boxes(boxes)])
    expected = by_loops(rule, [a.tensor for a in anchors], [boxes], **options_of(matcher))
    assert torch.equal(matched, expected)
    assert (matched >= 0).any()


@all_rules
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same_labels(rule):
    anchors = grid([(40, 50), (20, 25), (10, 13)], [8, 16, 32])
    corners = torch.randint(0, 300, (500, 2)).float()
    boxes = torch.cat((corners, corners + torch.randint(0, 90, (500, 2))), dim=1)
    boxes = torch.cat((boxes, boxes + torch.rand(500, 4)))
    gt_boxes = [boxes, boxes[:0], boxes[:3]]
    gt_ignore = [torch.arange(len(b)) % 10 == 0 for b in gt_boxes]
    matcher = simple(rule, num_levels=3, ignore_ioa_thresh=0.5)
    matched = matcher(
        [a.cuda() for a in anchors], [b.cuda() for b in gt_boxes], [f.cuda() for f in gt_ignore]
    )
    assert matched.is_cuda
    assert torch.equal(matched.cpu(), matcher(anchors, gt_boxes, gt_ignore))


# -------------------------------------------------------------------------- ignore regions


@all_rules
def test_an_ignore_region_gets_no_positives_and_keeps_its_index(rule):
    anchors, gt_boxes = small_scene()
    region = torch.tensor([[0.0, 0, 48, 48]])
    matcher = simple(rule, num_levels=2)
    objects = matcher(anchors, [gt_boxes[0]])
    boxes = torch.cat((region, gt_boxes[0], region))
    matched = matcher(anchors, [boxes], [torch.tensor([True, False, False, True])])
    assert torch.equal(matched, torch.where(objects >= 0, objects + 1, objects))
    assert (matched >= 0).any()


@all_rules
def test_covered_background_is_ignored_by_hand(rule):
    # 3 x 3 anchors of 8 x 8 pixels, side by side. The region covers the first whole, the second
    # by 5/8, the fourth by 4/8, the fifth by 5/8 x 4/8 = 0.3125.
    anchors = grid([(3, 3)], [8], [(1, 1)])
    boxes = torch.tensor([[16.0, 16, 24, 24], [0.0, 0, 13, 12]])
    is_region = torch.tensor([False, True])
    for thresh, ignored in ((None, []), (0.7, [0]), (0.5, [0, 1]), (0.49, [0, 1, 3])):
        matcher = simple(rule, num_levels=1, ignore_ioa_thresh=thresh)
        scene = anchors, [boxes, boxes[:1]], [is_region, is_region[:1]]
        matched = matcher(*scene)
        assert matched[0].eq(IGNORED).nonzero().flatten().tolist() == ignored, thresh
        assert (matched[1] != IGNORED).all()
        assert (matched[:, 8] == 0).all()
        if thresh is not None:
            assert stats_of(matcher, *scene)["num_ignored"] == len(ignored) / 2


@all_rules
def test_positives_in_an_ignore_region_stay(rule):
    anchors, gt_boxes = small_scene()
    region = torch.tensor([[-100.0, -100, 200, 200]])
    matcher = simple(rule, num_levels=2, ignore_ioa_thresh=0.5)
    plain = matcher(anchors, gt_boxes)
    assert (plain[1] == BACKGROUND).all()
    matched = matcher(
        anchors,
        [torch.cat((gt_boxes[0], region)), gt_boxes[1]],
        [torch.tensor([False, False, True]), torch.zeros(0, dtype=torch.bool)],
    )
    assert torch.equal(matched[0], torch.where(plain[0] >= 0, plain[0], IGNORED))
    assert torch.equal(matched[1], plain[1])  # another image


# ----------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        *((r, {"inset": -0.5}, "inset must be >= 0, got -0.5") for r in RULES),
        *((r, {"topk": 0}, "topk must be >= 1, got 0") for r in ("atss", "topk", "center_topk")),
        *(
            (r, {"center_epsilon": -1.0}, "center_epsilon must be (None or )?>= 0, got -1.0")
            for r in RULES
        ),
        ("atss", {"num_anchors": 0}, "num_anchors must be >= 1, got 0"),
        ("atss", {"min_positives": -1}, "min_positives must be >= 0, got -1"),
        ("atss", {"metric": "ciou"}, 'metric must be one of iou, giou, diou, got "ciou"'),
        ("atss", {"ignore_ioa_thresh": -0.1}, r"must be None or in \[0, 1\), got -0.1"),
        ("atss", {"ignore_ioa_thresh": 1}, r"ignore_ioa_thresh must be None or in \[0, 1\), got 1"),
        ("iou", {"thresholds": (0.5, 0.4)}, r"0 < low <= high <= 1, got \(0.5, 0.4\)"),
        ("iou", {"thresholds": (0.0, 0.4)}, r"0 < low <= high <= 1, got \(0.0, 0.4\)"),
        ("iou", {"thresholds": (0.5, 1.1)}, r"0 < low <= high <= 1, got \(0.5, 1.1\)"),
        ("iou", {"thresholds": (0.5,)}, r"thresholds must be \(low, high\), got \(0.5,\)"),
        ("scale_range", {"strides": []}, r"strides must be positive and ascending, got \[\]"),
        ("scale_range", {"strides": (0, 8)}, r"be positive and ascending, got \[0, 8\]"),
        ("scale_range", {"strides": (8, 8)}, r"be positive and ascending, got \[8, 8\]"),
        ("scale_range", {"range_factor": 0.0}, "range_factor must be > 0, got 0.0"),
        ("center_radius", {"topk": 9}, "exactly one of radius and topk .* radius=1.5, topk=9"),
        ("center_radius", {"radius": None}, "exactly one of .* radius=None, topk=None"),
        ("center_radius", {"radius": 0.0}, "radius must be > 0, got 0.0"),
    ],
)
def test_arguments_out_of_range(rule, options, message):
    with pytest.raises(ValueError, match=message):
        simple(rule, 2, **options)


def test_inputs_of_the_wrong_shape():
    anchors, gt_boxes = small_scene()
    matcher = simple("atss", num_levels=2)
    with pytest.raises(ValueError, match=r"shape \(n, 4\), got \(2, 5\)"):
        matcher(anchors, [torch.zeros(2, 5)])
    with pytest.raises(ValueError, match=r"shape \(n, 4\), got \(4,\)"):
        matcher(anchors, [torch.zeros(4)])
    with pytest.raises(ValueError, match=r"shape \(n, 4\), got \(3, 3, 4\)"):
        matcher([torch.zeros(3, 3, 4)], gt_boxes)
    with pytest.raises(ValueError, match="at least one level of anchors"):
        matcher([], gt_boxes)


@pytest.mark.parametrize(
    ("gt_ignore", "message"),
    [
        ([torch.tensor([True, False])], "gt_ignore has 1 images, gt_boxes has 2"),
        (
            [torch.tensor([True]), torch.zeros(0, dtype=torch.bool)],
            "gt_ignore[0] must be bool of shape (2,), one flag for each box of the image, "
            "got torch.bool of shape (1,)",
        ),
        (
            [torch.tensor([True, False]), torch.zeros(0)],
            "gt_ignore[1] must be bool of shape (0,), one flag for each box of the image, "
            "got torch.float32 of shape (0,)",
        ),
    ],
)
def test_flags_that_do_not_fit_the_boxes(gt_ignore, message):
    anchors, gt_boxes = small_scene()
    with pytest.raises(ValueError, match=re.escape(message)):
        simple("atss", num_levels=2)(anchors, gt_boxes, gt_ignore)


def test_a_rule_needs_nothing_but_match():
    class FirstAnchor(DenseMatcher):
        """Gives the first anchor of an image to its last box."""

        def match(self, scene):
            assert scene.boxes.dtype == torch.float32
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
            matched = torch.full((scene.num_images, sum(map(len, scene.anchors))), BACKGROUND)
            for box_idx, image_idx in enumerate(scene.image_idxs.tolist()):
                matched[image_idx, 0] = box_idx
            return matched

    anchors, gt_boxes = small_scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matched = FirstAnchor()(anchors, [gt_boxes[0][:1], gt_boxes[1], gt_boxes[0].double()])
    assert matched[:, 0].tolist() == [0, BACKGROUND, 1]  # index within the image
    assert (matched[:, 1:] == BACKGROUND).all()
