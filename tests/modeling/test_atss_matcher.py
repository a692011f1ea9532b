"""Sample selection: Algorithm 1 against loops, public implementations and numbers by hand."""

import copy
import math
import pickle

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.matchers import BACKGROUND, ATSSMatcher, DenseMatcher
from atss_d2.modeling.matchers import atss as atss_module
from tests import reference

published = reference.published()


def grid(shapes, strides, sides=((8.0, 8.0),), offset=0.5):
    """Levels of anchors as tensors."""
    return [torch.tensor(level) for level in reference.grid_anchors(shapes, strides, sides, offset)]


def expected(anchors, gt_boxes, **options):
    """(N, R) of the loop version."""
    levels = [level.tolist() for level in anchors]
    return torch.tensor(
        [reference.atss_match(levels, boxes.tolist(), **options) for boxes in gt_boxes]
    )


def check_against_loops(anchors, gt_boxes, **options):
    matched = ATSSMatcher(**options)(anchors, gt_boxes)
    assert matched.dtype == torch.int64
    torch.testing.assert_close(matched, expected(anchors, gt_boxes, **options), rtol=0, atol=0)
    return matched


# ---------------------------------------------------------------------------- public numbers


@pytest.mark.parametrize("variant", ["atss_box", "atss_point", "atss_box_a9"])
def test_labels_are_those_of_the_authors(variant):
    num_anchors = 9 if variant == "atss_box_a9" else 1
    source = "atss_box" if variant == "atss_point" else variant
    sizes = [h * w * num_anchors for h, w in published["level_shapes"].tolist()]
    anchors = torch.from_numpy(published[f"authors.{source}.anchors"]).split(sizes)
    gt_boxes = [torch.from_numpy(published[f"gt_boxes_{i}"]) for i in range(2)]

    matched = ATSSMatcher(num_anchors=num_anchors, inset=0.5)(anchors, gt_boxes)

    for i in range(2):
        classes = torch.from_numpy(published[f"gt_classes_{i}"])
        is_positive = matched[i] >= 0
        labels = torch.where(is_positive, classes[matched[i].clamp(min=0)] + 1, 0)
        theirs = torch.from_numpy(published[f"authors.{variant}.labels_{i}"]).to(labels)
        assert torch.equal(labels, theirs)
        torch.testing.assert_close(
            gt_boxes[i][matched[i][is_positive]],
            torch.from_numpy(published[f"authors.{variant}.matched_boxes_{i}"]),
            rtol=0,
            atol=1e-4,  # theirs went through their box coder and back
        )


def test_assignment_is_that_of_mmdetection():
    shapes = published["level_shapes"].tolist()
    anchors = grid(shapes, [8, 16, 32, 64, 128], offset=0.0)
    gt_boxes = [torch.from_numpy(published[f"gt_boxes_{i}"]) for i in range(2)]
    matched = ATSSMatcher()(anchors, gt_boxes)
    theirs = torch.stack([torch.from_numpy(published[f"mmdet.assigned_{i}"]) for i in range(2)])
    assert torch.equal(matched, theirs.long())


def test_the_loop_version_is_that_of_the_authors():
    """Holds the loops of the other tests to the published labels."""
    sizes = [h * w for h, w in published["level_shapes"].tolist()]
    anchors = torch.from_numpy(published["authors.atss_box.anchors"]).split(sizes)
    boxes = published["gt_boxes_0"].tolist()
    matched = reference.atss_match([a.tolist() for a in anchors], boxes, inset=0.5)
    classes = published["gt_classes_0"].tolist()
    labels = [classes[m] + 1 if m >= 0 else 0 for m in matched]
    assert labels == published["authors.atss_box.labels_0"].tolist()


# -------------------------------------------------------------------------- numbers by hand


def test_one_box_by_hand():
    # 4 x 4 anchors of 8 x 8 pixels, side by side. The box is the anchor 5: of its 9 nearest
    # anchors one has IoU 1, the others 0. Mean 1/9, unbiased deviation
    # sqrt(((8/9)^2 + 8 (1/9)^2) / 8) = sqrt(72/81/8) = 1/3, so the threshold is 4/9.
    matcher = ATSSMatcher()
    matched = matcher(grid([(4, 4)], [8], [(1, 1)]), [torch.tensor([[8.0, 8, 16, 16]])])
    assert matched.tolist() == [[-1] * 5 + [0] + [-1] * 10]
    torch.testing.assert_close(matcher.last_stats["mean_threshold"].item(), 4 / 9)


def test_the_deviation_is_unbiased():
    # Two candidates of IoU 1/2 and 1/4: mean 3/8, deviation sqrt(2 (1/8)^2 / (2 - 1)) = 0.17678.
    anchors = [torch.tensor([[0.0, 0, 8, 16]]), torch.tensor([[0.0, 0, 8, 8]])]
    matcher = ATSSMatcher()
    matcher(anchors, [torch.tensor([[0.0, 0, 16, 16]])])
    torch.testing.assert_close(
        matcher.last_stats["mean_threshold"].item(), 3 / 8 + math.sqrt(2) / 8
    )


def test_mean_threshold_is_the_mean_over_the_boxes():
    anchors = grid([(6, 6), (3, 3)], [8, 16], [(2, 2)])
    boxes = [torch.tensor([[3.0, 4, 30, 21], [7, 1, 17, 45]]), torch.tensor([[0.0, 0, 48, 48]])]
    matcher = ATSSMatcher(topk=3)
    matcher(anchors, boxes)
    thresholds = [
        reference.atss_threshold([a.tolist() for a in anchors], box, topk=3)
        for box in torch.cat(boxes).tolist()
    ]
    torch.testing.assert_close(
        matcher.last_stats["mean_threshold"].item(), sum(thresholds) / 3, rtol=1e-6, atol=0
    )


def test_candidates_at_equal_distance_are_taken_in_order_of_index():
    # The centre of the box is equally far from all four anchors: the first two are candidates.
    # Both have IoU 64/256: a single value, so both are positive.
    anchors = grid([(2, 2)], [8], [(1, 1)])
    assert ATSSMatcher(topk=2)(anchors, [torch.tensor([[0.0, 0, 16, 16]])]).tolist() == [
        [0, 0, -1, -1]
    ]


def test_boxes_of_equal_iou_are_served_in_order_of_index():
    anchors = grid([(4, 4)], [8], [(1, 1)])
    boxes = torch.tensor([[8.0, 8, 16, 16]]).repeat(3, 1)
    assert ATSSMatcher()(anchors, [boxes])[0, 5] == 0


def test_an_anchor_goes_to_the_box_of_highest_iou():
    anchors = grid([(4, 4)], [8], [(1, 1)])
    # The anchor 5 is [8, 8, 16, 16]: IoU 64/100 with the first box, 64/81 with the second.
    boxes = torch.tensor([[7.0, 7, 17, 17], [8, 8, 17, 17], [6, 6, 18, 18]])
    matched = ATSSMatcher()(anchors, [boxes])
    assert matched[0, 5] == 1
    assert (matched[0, :5] == BACKGROUND).all()


@pytest.mark.parametrize("shape", [(1, 9), (3, 3), (5, 7)])
def test_equal_ious_are_equal_to_their_threshold(shape):
    """A box that holds all candidates of a level: IoU = mean, deviation 0, all are positive.

    In float32 the mean of nine equal numbers is often another number.
    """
    sides = 100 + 100 * torch.rand(50, 4)
    boxes = torch.tensor([-1.0, -1, 1, 1]) * sides
    matched = ATSSMatcher()(grid([shape], [8], [(2, 2)]), list(boxes[:, None]))
    assert ((matched == 0).sum(dim=1) == 9).all()


def test_a_centre_must_be_more_than_epsilon_inside():
    # The anchor's centre (4, 4) is 0.5 px inside the box on the left, 1 px after an inset of -0.5.
    anchors = grid([(1, 1)], [8], [(1, 1)])
    box = torch.tensor([[3.5, 0, 9, 8]])
    for options, is_positive in (
        ({}, True),
        ({"center_epsilon": 0.49}, True),
        ({"center_epsilon": 0.5}, False),
        ({"inset": 0.48}, True),
        ({"inset": 0.5}, False),
    ):
        assert (ATSSMatcher(**options)(anchors, [box]) == 0).all() == is_positive, options


def test_min_positives_gives_a_box_between_centres_its_best_candidate():
    # 4 px between the centres 4 and 12: the paper's rule finds no positive. IoU is 4/76 with each
    # of the anchors 0, 1, 4, 5, which are equally far.
    anchors = grid([(4, 4)], [8], [(1, 1)])
    box = torch.tensor([[6.0, 6, 10, 10]])
    assert (ATSSMatcher()(anchors, [box]) == BACKGROUND).all()
    assert ATSSMatcher(min_positives=1)(anchors, [box]).tolist() == [[0] + [-1] * 15]
    matched = ATSSMatcher(min_positives=3)(anchors, [box])
    assert (matched[0] == 0).nonzero().flatten().tolist() == [0, 1, 4]


def test_min_positives_leaves_boxes_without_area_alone():
    anchors = grid([(4, 4)], [8], [(1, 1)])
    boxes = torch.tensor([[6.0, 6, 6, 10], [6, 6, 10, 6], [10, 10, 6, 6], [6, 10, 10, 6]])
    assert (ATSSMatcher(min_positives=2)(anchors, [boxes]) == BACKGROUND).all()


def test_min_positives_when_an_iou_is_negative_zero():
    """min(x2) - max(x1) is -0.0 where a box that ends at -0.0 touches an anchor at 0.0."""
    anchors = grid([(1, 1)], [8], [(1, 1)])
    box = torch.tensor([[-8.0, 0, -0.0, 8]])
    assert ATSSMatcher(min_positives=1)(anchors, [box]).tolist() == [[0]]


def test_share_of_tiny_boxes_without_a_positive():
    """Three quarters of boxes of 4 x 4 px, anywhere in an image, lie between the centres.

    A centre of stride 8 is inside, by 0.01 px, with probability (3.98 / 8)^2. Centres of the
    other strides are of no use: IoU with their anchors is below mean + deviation.
    """
    anchors = grid([(40, 40), (20, 20), (10, 10), (5, 5), (3, 3)], [8, 16, 32, 64, 128])
    corners = 316 * torch.rand(600, 2)
    boxes = torch.cat((corners, corners + 4), dim=1)
    matched = ATSSMatcher()(anchors, list(boxes[:, None]))  # each alone in an image
    share = (matched < 0).all(dim=1).double().mean().item()
    assert share == pytest.approx(1 - (3.98 / 8) ** 2, abs=0.04)  # 600 draws scatter by 0.018


# ------------------------------------------------------------------------------- properties


@st.composite
def scenes(draw, max_levels=4):
    """Anchors, boxes of some images, options. Integers make ties, fractions make roundings."""
    num_levels = draw(st.integers(1, max_levels))
    side = st.integers(1, 6 if num_levels < 5 else 3)
    shapes = [(draw(side), draw(side)) for _ in range(num_levels)]
    strides = [draw(st.sampled_from([4, 8])) * 2**i for i in range(num_levels)]
    sides = draw(
        st.lists(
            st.tuples(st.sampled_from([0.5, 1, 2, 3.3, 8]), st.sampled_from([1, 2, 2.7, 8])),
            min_size=1,
            max_size=9,
        )
    )
    if num_levels > 1 or max(shapes[0]) > 3:
        sides = sides[:3]
    anchors = grid(shapes, strides, sides, draw(st.sampled_from([0.0, 0.5])))
    if draw(st.booleans()):
        start, length = st.integers(-20, 60), st.integers(-3, 60)
    else:
        start = st.floats(-20, 60, width=32)
        length = st.one_of(st.floats(-3, 60, width=32), st.floats(0, 5, width=32))
    box = st.tuples(start, start, length, length).map(
        lambda b: [float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3])]
    )
    images = draw(st.lists(st.lists(box, max_size=6), min_size=1, max_size=3))
    gt_boxes = [torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) for boxes in images]
    options = {
        "topk": draw(st.sampled_from([1, 2, 4, 9, 15])),
        "num_anchors": len(sides),
        "inset": draw(st.sampled_from([0.0, 0.5])),
        "min_positives": draw(st.sampled_from([0, 0, 1, 3])),
    }
    return anchors, gt_boxes, options


@settings(max_examples=150, derandomize=True)
@given(scenes())
def test_equals_the_loops(scene):
    anchors, gt_boxes, options = scene
    check_against_loops(anchors, gt_boxes, **options)


@settings(max_examples=25, derandomize=True)
@given(scenes(max_levels=7))
def test_equals_the_loops_with_up_to_seven_levels(scene):
    anchors, gt_boxes, options = scene
    check_against_loops(anchors, gt_boxes, **options)


@settings(max_examples=40, derandomize=True)
@given(scenes(), st.sampled_from([1, 7, 64]))
def test_chunks_change_nothing(scene, max_entries):
    anchors, gt_boxes, options = scene
    matcher = ATSSMatcher(**options)
    whole = matcher(anchors, gt_boxes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atss_module, "_MAX_CHUNK_ENTRIES", max_entries)
        assert torch.equal(matcher(anchors, gt_boxes), whole)


@settings(max_examples=40, derandomize=True)
@given(scenes())
def test_images_do_not_see_each_other(scene):
    anchors, gt_boxes, options = scene
    matcher = ATSSMatcher(**options)
    together = matcher(anchors, gt_boxes)
    alone = torch.cat([matcher(anchors, [boxes]) for boxes in gt_boxes])
    assert torch.equal(together, alone)
    empty = torch.zeros(0, 4)
    with_empty = matcher(anchors, [empty, *gt_boxes, empty])
    assert torch.equal(with_empty[1:-1], together)
    assert (with_empty[[0, -1]] == BACKGROUND).all()


@settings(max_examples=40, derandomize=True)
@given(scenes(), st.integers(-64, 64), st.integers(-64, 64))
def test_moving_anchors_and_boxes_changes_nothing(scene, x, y):
    anchors, gt_boxes, options = scene
    # Quarters of pixels: all numbers stay exact when they are moved by whole pixels.
    anchors = [(a * 4).round() / 4 for a in anchors]
    gt_boxes = [(b * 4).round() / 4 for b in gt_boxes]
    by = torch.tensor([x, y, x, y])
    matcher = ATSSMatcher(**options)
    moved = matcher([a + by for a in anchors], [b + by for b in gt_boxes])
    assert torch.equal(moved, matcher(anchors, gt_boxes))


def test_moving_boxes_by_the_largest_stride_moves_their_anchors():
    shapes, strides = [(32, 32), (16, 16), (8, 8)], [8, 16, 32]
    anchors = grid(shapes, strides, [(2, 2)])
    corners = 96 + 40 * torch.rand(5, 2)
    boxes = torch.cat((corners, corners + 5 + 35 * torch.rand(5, 2)), dim=1)

    matched, moved = ATSSMatcher()(anchors, [boxes, boxes + torch.tensor([32.0, 64, 32, 64])])
    sizes = [h * w for h, w in shapes]
    for level, level_moved, shape, stride in zip(
        matched.split(sizes), moved.split(sizes), shapes, strides, strict=True
    ):
        shift = (64 // stride, 32 // stride)
        assert torch.equal(level.view(shape).roll(shift, dims=(0, 1)), level_moved.view(shape))
    assert (matched >= 0).sum() > 5


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_boxes_does_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    anchors = grid([(12, 12), (6, 6), (3, 3)], [8, 16, 32], [(2, 2)])
    corners = 80 * torch.rand(12, 2, generator=generator)
    boxes = torch.cat((corners, corners + 30 * torch.rand(12, 2, generator=generator)), dim=1)
    order = torch.randperm(12, generator=generator)
    matcher = ATSSMatcher(min_positives=seed % 2)
    matched, permuted = matcher(anchors, [boxes, boxes[order]])
    is_positive = matched >= 0
    assert is_positive.sum() > 5
    assert torch.equal(is_positive, permuted >= 0)
    assert torch.equal(matched[is_positive], order[permuted[is_positive]])


def test_every_positive_has_its_centre_inside_its_box():
    anchors = grid([(12, 12), (6, 6)], [8, 16], [(2, 1), (1, 2)])
    corners = 80 * torch.rand(30, 2)
    boxes = torch.cat((corners, corners + 30 * torch.rand(30, 2)), dim=1)
    matched = ATSSMatcher(num_anchors=2)(anchors, [boxes])[0]
    is_positive = matched >= 0
    all_anchors = torch.cat(anchors)[is_positive]
    centers = (all_anchors[:, :2] + all_anchors[:, 2:]) / 2
    of_box = boxes[matched[is_positive]]
    assert is_positive.any()
    assert (centers > of_box[:, :2]).all()
    assert (centers < of_box[:, 2:]).all()


# ------------------------------------------------------------------------------ hard scenes


@pytest.mark.parametrize("num_anchors", range(1, 10))
def test_any_number_of_anchors_per_location(num_anchors):
    sides = [(1 + i / 2, 4 / (1 + i / 2)) for i in range(num_anchors)]
    anchors = grid([(5, 4), (2, 2)], [8, 16], sides)
    boxes = torch.tensor([[3.0, 4, 30, 21], [7, 1, 17, 45], [0, 0, 32, 40], [9, 9, 12, 12]])
    matched = check_against_loops(anchors, [boxes, boxes[:1]], num_anchors=num_anchors)
    assert (matched >= 0).any()


@pytest.mark.parametrize("num_levels", range(1, 8))
def test_any_number_of_levels_down_to_a_single_cell(num_levels):
    shapes = [(math.ceil(9 / 2**i), math.ceil(7 / 2**i)) for i in range(num_levels)]
    anchors = grid(shapes, [8 * 2**i for i in range(num_levels)], [(2, 2)])
    boxes = torch.tensor([[3.0, 4, 30, 21], [7, 1, 17, 45], [0, 0, 56, 72]])
    matched = check_against_loops(anchors, [boxes])
    assert (matched >= 0).any()


def test_a_single_candidate_has_no_deviation():
    anchors = grid([(1, 1)], [8], [(1, 1)])
    boxes = torch.tensor([[-30.0, -3, 5, 5]])  # the threshold is the IoU itself
    assert check_against_loops(anchors, [boxes]).tolist() == [[0]]
    anchors = grid([(6, 6)], [8], [(1, 1)])
    assert (check_against_loops(anchors, [boxes], topk=1) == 0).sum() == 1


def test_batches_without_boxes():
    anchors = grid([(3, 3), (1, 1)], [8, 16])
    matcher = ATSSMatcher()
    for num_images in (1, 3):
        matched = matcher(anchors, [Boxes(torch.zeros(0, 4))] * num_images)
        assert matched.shape == (num_images, 10)
        assert (matched == BACKGROUND).all()
        assert matcher.last_stats["mean_threshold"] == 0
    assert matcher(anchors, []).shape == (0, 10)


@pytest.mark.parametrize(
    "box",
    [
        [10.0, 10, 10, 30],  # no width
        [10.0, 10, 30, 10],  # no height
        [12.0, 12, 12, 12],  # a point, on a centre
        [30.0, 10, 10, 30],  # inverted in x
        [10.0, 30, 30, 10],  # inverted in y
        [30.0, 30, 10, 10],  # inverted in both: width x height is positive
        [float("nan"), 10, 30, 30],
        [float("nan")] * 4,
    ],
    ids=str,
)
def test_boxes_that_are_none_get_no_anchor_and_disturb_no_other(box):
    anchors = grid([(6, 6), (3, 3)], [8, 16], [(2, 2)])
    good = torch.tensor([[8.0, 8, 28, 24]])
    alone = ATSSMatcher(min_positives=1)(anchors, [good])[0]
    matcher = ATSSMatcher(min_positives=1)
    both = matcher(anchors, [torch.cat((torch.tensor([box]), good))])[0]
    assert (both != 0).all()
    assert torch.equal(both == 1, alone == 0)
    assert matcher.last_stats["mean_threshold"].isfinite()


@pytest.mark.parametrize(
    "box",
    [
        [-20.0, -20, 20, 20],  # across the corner
        [30.0, 30, 90, 90],
        [-50.0, 10, 120, 20],
        [0.0, 0, 48, 48],  # the whole image
        [-1000.0, -1000, 1000, 1000],
        [-1e6, -1e6, 1e6, 1e6],
        [-200.0, -200, -100, -100],  # far outside
        [47.0, 47, 48, 48],
        [15.5, 15.5, 16.5, 16.5],  # between four centres
    ],
    ids=str,
)
@pytest.mark.parametrize("min_positives", [0, 1])
def test_boxes_at_and_beyond_the_border_tiny_and_huge(box, min_positives):
    anchors = grid([(6, 6), (3, 3), (2, 2)], [8, 16, 32], [(2, 2)])
    matched = check_against_loops(anchors, [torch.tensor([box])], min_positives=min_positives)
    assert (matched >= 0).sum() >= min_positives


def test_boxes_too_large_for_float32_areas():
    """An area overflows above 1.8e19 pixels; whatever happens must not spread to other boxes."""
    anchors = grid([(6, 6)], [8], [(2, 2)])
    good = torch.tensor([[8.0, 8, 28, 24]])
    huge = torch.tensor([[-1e20, -1e20, 1e20, 1e20]])
    alone = ATSSMatcher()(anchors, [good])[0]
    matcher = ATSSMatcher()
    both = matcher(anchors, [torch.cat((good, huge))])[0]
    assert torch.equal(both == 0, alone == 0)
    assert matcher.last_stats["mean_threshold"].isfinite()


def test_thousands_of_boxes_in_one_image():
    anchors = grid([(8, 8), (4, 4), (2, 2)], [8, 16, 32], [(2, 2)])
    corners = torch.randint(0, 60, (2000, 2)).float()
    boxes = torch.cat((corners, corners + torch.randint(0, 30, (2000, 2))), dim=1)
    matched = check_against_loops(anchors, [boxes, boxes[:1], boxes[:0]])
    assert matched.max() > 1000


def test_the_same_again():
    anchors = grid([(8, 8), (4, 4)], [8, 16], [(2, 2)])
    corners = torch.randint(0, 60, (300, 2)).float()
    boxes = torch.cat((corners, corners + torch.randint(1, 30, (300, 2))), dim=1)
    matcher = ATSSMatcher()
    first = matcher(anchors, [boxes])
    for other in (matcher, ATSSMatcher(), copy.deepcopy(matcher)):
        assert torch.equal(other(anchors, [boxes]), first)
    assert torch.equal(pickle.loads(pickle.dumps(matcher))(anchors, [boxes]), first)


# -------------------------------------------------------------------- types, modes, devices


def _small_scene():
    anchors = grid([(6, 6), (3, 3)], [8, 16], [(2, 2)])
    return anchors, [torch.tensor([[3.0, 4, 30, 21], [7, 1, 17, 45]]), torch.zeros(0, 4)]


def test_plain_tensors_are_as_good_as_boxes():
    anchors, gt_boxes = _small_scene()
    matcher = ATSSMatcher()
    assert torch.equal(
        matcher([Boxes(a) for a in anchors], [Boxes(b) for b in gt_boxes]),
        matcher(anchors, gt_boxes),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_other_number_types_are_measured_in_float32(dtype):
    anchors, gt_boxes = _small_scene()  # whole numbers below 256: exact in every type
    matched = ATSSMatcher()([a.to(dtype) for a in anchors], [b.to(dtype) for b in gt_boxes])
    assert torch.equal(matched, ATSSMatcher()(anchors, gt_boxes))
    assert (matched >= 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    anchors, gt_boxes = _small_scene()
    gt_boxes[0] = gt_boxes[0] + 1 / 3
    expected = ATSSMatcher()(anchors, gt_boxes)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(ATSSMatcher()(anchors, gt_boxes), expected)


def test_no_gradient_is_recorded():
    anchors, gt_boxes = _small_scene()
    matcher = ATSSMatcher(min_positives=1)
    matched = matcher([a.requires_grad_() for a in anchors], [b.requires_grad_() for b in gt_boxes])
    assert not matched.requires_grad
    assert not any(value.requires_grad for value in matcher.last_stats.values())


def test_the_arguments_are_not_changed():
    anchors, gt_boxes = _small_scene()
    before = copy.deepcopy((anchors, gt_boxes))
    ATSSMatcher(min_positives=1)(anchors, gt_boxes)
    torch.testing.assert_close((anchors, gt_boxes), before, rtol=0, atol=0)


def test_anchors_of_detectron2s_generator():
    generator = DefaultAnchorGenerator(
        sizes=[[16, 20], [32, 40]], aspect_ratios=[0.5, 1.0, 2.0], strides=[8, 16], offset=0.5
    )
    anchors = generator([torch.zeros(1, 1, 5, 6), torch.zeros(1, 1, 3, 3)])
    boxes = torch.tensor([[3.0, 4, 30, 21], [7, 1, 17, 39]])
    matched = check_against_loops([a.tensor for a in anchors], [boxes], num_anchors=6)
    assert torch.equal(ATSSMatcher(num_anchors=6)(anchors, [Boxes(boxes)]), matched)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_gives_the_same_labels():
    anchors = grid([(40, 50), (20, 25), (10, 13)], [8, 16, 32])
    corners = torch.randint(0, 300, (500, 2)).float()
    boxes = torch.cat((corners, corners + torch.randint(0, 90, (500, 2))), dim=1)
    boxes = torch.cat((boxes, boxes + torch.rand(500, 4)))
    gt_boxes = [boxes, boxes[:0], boxes[:3]]
    matched = ATSSMatcher(min_positives=1)(
        [a.cuda() for a in anchors], [b.cuda() for b in gt_boxes]
    )
    assert matched.is_cuda
    assert torch.equal(matched.cpu(), ATSSMatcher(min_positives=1)(anchors, gt_boxes))


# ----------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0}, "topk must be >= 1, got 0"),
        ({"num_anchors": 0}, "num_anchors must be >= 1, got 0"),
        ({"inset": -0.5}, "inset must be >= 0, got -0.5"),
        ({"min_positives": -1}, "min_positives must be >= 0, got -1"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        ATSSMatcher(**options)


def test_arguments_are_keyword_only():
    with pytest.raises(TypeError):
        ATSSMatcher(9)


def test_inputs_of_the_wrong_shape():
    anchors, gt_boxes = _small_scene()
    matcher = ATSSMatcher()
    with pytest.raises(ValueError, match=r"shape \(n, 4\), got \(2, 5\)"):
        matcher(anchors, [torch.zeros(2, 5)])
    with pytest.raises(ValueError, match=r"shape \(n, 4\), got \(4,\)"):
        matcher(anchors, [torch.zeros(4)])
    with pytest.raises(ValueError, match=r"shape \(n, 4\), got \(3, 3, 4\)"):
        matcher([torch.zeros(3, 3, 4)], gt_boxes)
    with pytest.raises(ValueError, match="at least one level of anchors"):
        matcher([], gt_boxes)


def test_a_rule_needs_nothing_but_match():
    class FirstAnchor(DenseMatcher):
        """Gives the first anchor of an image to its last box."""

        def match(self, anchors, boxes, image_idxs, num_images):
            assert boxes.dtype == torch.float32
            assert not torch.is_autocast_enabled("cpu")
            assert not torch.is_grad_enabled()
            matched = torch.full((num_images, sum(map(len, anchors))), BACKGROUND)
            for box_idx, image_idx in enumerate(image_idxs.tolist()):
                matched[image_idx, 0] = box_idx
            return matched

    anchors, gt_boxes = _small_scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matched = FirstAnchor()(anchors, [gt_boxes[0][:1], gt_boxes[1], gt_boxes[0].double()])
    assert matched[:, 0].tolist() == [0, BACKGROUND, 1]  # index within the image
    assert (matched[:, 1:] == BACKGROUND).all()
