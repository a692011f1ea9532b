"""FCOS's rule and center sampling: Detectron2's FCOS, numbers by hand."""

import pytest
import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from atss_d2.modeling.matchers import BACKGROUND, CenterSamplingMatcher, ScaleRangeMatcher
from tests import reference_matching
from tests.detector import ToyBackbone
from tests.matching_scenes import grid

STRIDES = [8, 16, 32, 64, 128]
SIDE = 768  # of the image


def pyramid(offset=0.5):
    shapes = [(SIDE // s, SIDE // s) for s in STRIDES]
    return grid(shapes, STRIDES, [(1, 1)], offset)


def random_boxes(count, generator):
    """Boxes of 4 to 1600 px, as many small as large ones."""
    centers = SIDE * torch.rand(count, 2, generator=generator)
    sides = 4 * 400 ** torch.rand(count, 2, generator=generator)
    return torch.cat((centers - sides / 2, centers + sides / 2), dim=1)


def positives_per_level(matched, anchors):
    return [(x >= 0).sum().item() for x in matched.split([len(a) for a in anchors])]


# ----------------------------------------------------------------------- Detectron2's FCOS


def detectron2_labels(anchors, gt_boxes, radius):
    """(N, R) of Detectron2's FCOS; boxes are told apart by giving each a class of its own."""
    num_classes = max(len(b) for b in gt_boxes)
    model = FCOS(
        backbone=ToyBackbone(len(anchors)),
        head=nn.Identity(),
        num_classes=num_classes,
        center_sampling_radius=radius,
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    instances = [
        Instances((SIDE, SIDE), gt_boxes=Boxes(b), gt_classes=torch.arange(len(b)))
        for b in gt_boxes
    ]
    labels = torch.stack(model.label_anchors([Boxes(a) for a in anchors], instances)[0])
    return torch.where(labels == num_classes, BACKGROUND, labels)


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("radius", [1.5, 1.0, 1000.0])
def test_labels_are_those_of_detectron2s_fcos(radius, offset):
    generator = torch.Generator().manual_seed(int(radius * 10))
    anchors = pyramid(offset=offset)
    gt_boxes = [random_boxes(count, generator) for count in (60, 1, 0, 8)]
    expected = detectron2_labels(anchors, gt_boxes, radius)
    # There the epsilon is 0; random boxes have no distance of exactly an end of a range.
    matcher = CenterSamplingMatcher(radius=radius, center_epsilon=0.0)
    matched = matcher(anchors, gt_boxes)
    assert torch.equal(matched, expected)
    assert all(count > 0 for count in positives_per_level(matched[0], anchors))
    if radius == 1000:
        plain = ScaleRangeMatcher(center_epsilon=0.0)(anchors, gt_boxes)
        assert torch.equal(plain, expected)


def test_where_detectron2s_fcos_differs():
    anchors = pyramid()
    # From the centre (40, 40) of the anchor (2, 2) of P4 the largest distance is 64, the upper end
    # of P3 and the lower one of P4; from (36, 36) and (44, 44) of P3 it is 68.
    edge = torch.tensor([[-24.0, -24, 104, 104]])
    ours = CenterSamplingMatcher()(anchors, [edge])
    theirs = detectron2_labels(anchors, [edge], 1.5)
    at = len(anchors[0]) + 2 * (SIDE // 16) + 2
    assert ours[0, at] == 0
    assert theirs[0, at] == BACKGROUND
    # From (36, 36) of P3 it is 64 as well; of the nearest centres of P4 it is 60 and 76.
    edge = torch.tensor([[-28.0, 0, 100, 72]])
    ours = CenterSamplingMatcher()(anchors, [edge])
    theirs = detectron2_labels(anchors, [edge], 1.5)
    at = 4 * (SIDE // 8) + 4
    assert ours[0, at] == 0
    assert theirs[0, at] == BACKGROUND
    # Above 1e8 square pixels.
    huge = torch.tensor([[-7000.0, -7000, 7000, 7000]])
    assert (CenterSamplingMatcher()(anchors, [huge]) == 0).any()
    assert (detectron2_labels(anchors, [huge], 1.5) == BACKGROUND).all()


# -------------------------------------------------------------------------- scale ranges


@pytest.mark.parametrize(
    ("side", "level"), [(30, 0), (100, 0), (200, 1), (400, 2), (800, 3), (2000, 4)]
)
def test_the_level_follows_from_the_size(side, level):
    # A square around the middle: from the four centres next to it, half a stride away in each
    # direction, the largest distance is side / 2 + stride / 2.
    anchors = pyramid()
    box = SIDE / 2 + side / 2 * torch.tensor([[-1.0, -1, 1, 1]])
    matched = CenterSamplingMatcher(radius=0.6)(anchors, [box])[0]
    assert positives_per_level(matched, anchors) == [4 if i == level else 0 for i in range(5)]


def levels_of(matched):
    """Levels of the only box's anchors, one anchor a level."""
    assert matched.shape[0] == 1
    assert ((matched == 0) | (matched == BACKGROUND)).all()
    return (matched[0] == 0).nonzero().flatten().tolist()


def one_anchor_a_level(strides):
    """All with the centre (0, 0)."""
    return [torch.tensor([[-0.5, -0.5, 0.5, 0.5]]) * stride for stride in strides]


@pytest.mark.parametrize("rule", [ScaleRangeMatcher, CenterSamplingMatcher])
@pytest.mark.parametrize(
    ("largest", "levels"),
    [
        (0.5, [0]),
        (63.75, [0]),
        (64, [0, 1]),
        (64.25, [1]),
        (127.75, [1]),
        (128, [1, 2]),
        (128.25, [2]),
        (256, [2, 3]),
        (512, [3, 4]),
        (512.25, [4]),
        (1024, [4]),  # the last level has no upper end
        (1e4, [4]),
    ],
)
@pytest.mark.parametrize("side", range(4))
def test_both_ends_belong_to_a_range(rule, largest, levels, side):
    """FCOS, Sec. 3.2: negative if max > m_i or max < m_(i-1); m = 0, 64, 128, 256, 512, inf."""
    others = min(largest, 0.5)
    box = torch.tensor([[-others, -others, others, others]])
    box[0, side] = largest if side > 1 else -largest
    options = {} if rule is ScaleRangeMatcher else {"radius": 1e4}
    assert levels_of(rule(**options)(one_anchor_a_level(STRIDES), [box])) == levels


def test_the_ends_of_other_ranges_by_hand():
    strides = (8, 16, 32, 64)
    matcher = ScaleRangeMatcher(strides=strides, range_factor=2.0)
    for largest, levels in (
        *((0.5, [0]), (16, [0, 1]), (16.01, [1]), (32, [1, 2]), (64, [2, 3]), (64.1, [3])),
        *((128, [3]), (1e4, [3])),
    ):
        box = torch.tensor([[-0.1, -0.2, 0.3, largest]])
        assert levels_of(matcher(one_anchor_a_level(strides), [box])) == levels, largest


def test_ranges_leave_no_gap_between_unusual_strides():
    strides = (4, 32, 40)
    matcher = ScaleRangeMatcher(strides=strides, range_factor=1.0)
    for largest, levels in (
        *((3, [0]), (4, [0, 1]), (5, [1]), (32, [1, 2]), (33, [2]), (40, [2]), (50, [2])),
    ):
        box = torch.tensor([[-1.0, -1, 1, largest]])
        assert levels_of(matcher(one_anchor_a_level(strides), [box])) == levels, largest


def test_the_inset_moves_the_ends():
    """The authors' distances are half a pixel shorter, so 64 is 64.5 for us."""
    matcher = ScaleRangeMatcher(inset=0.5)
    for largest, levels in ((64, [0]), (64.5, [0, 1]), (64.75, [1]), (128.5, [1, 2])):
        box = torch.tensor([[-1.0, -1, 1, largest]])
        assert levels_of(matcher(one_anchor_a_level(STRIDES), [box])) == levels, largest


@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("options", [{}, {"radius": 1.5}, {"radius": None, "topk": 9}])
def test_integer_boxes_are_labelled_as_by_the_loops(options, data):
    """Integer boxes lie at exactly the end of a range all the time."""
    strides = [8, 16, 32]
    anchors = grid([(6, 6), (3, 3), (2, 2)], strides, [(1, 1)])
    corner, side = st.integers(-16, 40), st.integers(1, 56)
    boxes = data.draw(st.lists(st.tuples(corner, corner, side, side), min_size=1, max_size=4))
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32)
    rule = CenterSamplingMatcher if options else ScaleRangeMatcher
    options = {"strides": strides, "range_factor": data.draw(st.sampled_from([1, 2, 4])), **options}
    matched = rule(**options)(anchors, [boxes])[0].tolist()
    levels = [level.tolist() for level in anchors]
    assert matched == reference_matching.fcos_match(levels, boxes.tolist(), **options)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_every_place_inside_a_box_has_one_level_or_two_that_meet(data):
    """One anchor a level at the same place: no gap, and an overlap at the ends only."""
    sides = data.draw(st.tuples(*[st.integers(1, 1100)] * 4))
    box = torch.tensor([[-sides[0], -sides[1], sides[2], sides[3]]], dtype=torch.float32)
    levels = levels_of(ScaleRangeMatcher()(one_anchor_a_level(STRIDES), [box]))
    largest = max(sides)
    if largest in (64, 128, 256, 512):
        assert levels == [STRIDES.index(largest // 8), STRIDES.index(largest // 8) + 1]
    else:
        assert levels == [sum(largest > end for end in (64, 128, 256, 512))]


def test_inset_shortens_all_four_distances():
    anchors = [torch.tensor([[-4.0, -4, 4, 4]])] * 2
    box = torch.tensor([[-0.5, -3, 3, 16.5]])
    options = {"strides": (8, 16), "range_factor": 2.0}
    assert ScaleRangeMatcher(**options)(anchors, [box]).tolist() == [[-1, 0]]  # 16.5 > 16
    assert ScaleRangeMatcher(inset=0.48, **options)(anchors, [box]).tolist() == [[-1, 0]]
    assert (ScaleRangeMatcher(inset=0.5, **options)(anchors, [box]) == -1).all()  # 0 <= 0.01
    box = torch.tensor([[-3.0, -3, 3, 16.5]])
    assert ScaleRangeMatcher(inset=0.5, **options)(anchors, [box]).tolist() == [[0, 0]]  # 16


def test_the_smallest_box_wins():
    anchors = [torch.tensor([[-4.0, -4, 4, 4]])]
    boxes = torch.tensor([[-9.0, -9, 9, 9], [-2, -2, 6, 6], [-4, -4, 4, 4], [-1, -40, 1, 40]])
    # Areas 324, 64, 64, 160: of the two smallest the lower index.
    assert ScaleRangeMatcher(strides=[8])(anchors, [boxes]).tolist() == [[1]]
    assert ScaleRangeMatcher(strides=[8])(anchors, [boxes[[0, 3]]]).tolist() == [[1]]


@pytest.mark.parametrize("options", [{}, {"radius": 1.0}, {"radius": None, "topk": 9}])
@pytest.mark.parametrize("num_anchors", [3, 9])
def test_the_anchors_of_a_location_are_labelled_alike(options, num_anchors):
    shapes, strides = [(8, 8), (4, 4)], [8, 16]
    rule = CenterSamplingMatcher if options else ScaleRangeMatcher
    corners = torch.randint(0, 50, (10, 2)).float()
    boxes = torch.cat((corners, corners + torch.randint(1, 50, (10, 2))), dim=1)
    one = rule(strides=strides, range_factor=2.0, **options)(grid(shapes, strides), [boxes])
    if "topk" in options:
        options = {**options, "topk": 9 * num_anchors}
    sides = [(1 + i / 2, 2 + i / 4) for i in range(num_anchors)]
    matcher = rule(strides=strides, range_factor=2.0, **options)
    matched = matcher(grid(shapes, strides, sides), [boxes])
    assert torch.equal(matched, one.repeat_interleave(num_anchors, dim=1))
    assert (matched >= 0).any()


# ----------------------------------------------------------------------- center sampling


def test_the_sampling_square_by_hand():
    # 8 x 8 anchors of stride 8, centres 4, 12, ..., 60. The centre of the box is (32, 32): 1.5
    # strides reach from 20 to 44, excluding both; centres 28 and 36 are inside in each direction.
    anchors = grid([(8, 8)], [8])
    box = torch.tensor([[0.0, 0, 64, 64]])
    for radius, inside in ((0.5, []), (0.51, [3, 4]), (1.5, [3, 4]), (1.6, [2, 3, 4, 5])):
        for epsilon in (0.0, 0.01):
            matcher = CenterSamplingMatcher(strides=[8], radius=radius, center_epsilon=epsilon)
            positive = (matcher(anchors, [box])[0] == 0).nonzero().flatten().tolist()
            assert positive == [8 * row + column for row in inside for column in inside], radius


def test_the_sampling_square_is_clipped_to_the_box():
    anchors = grid([(8, 8)], [8])
    box = torch.tensor([[0.0, 30, 64, 34]])  # between the rows 28 and 36
    assert (CenterSamplingMatcher(strides=[8], radius=3)(anchors, [box]) == BACKGROUND).all()
    box = torch.tensor([[0.0, 27, 64, 37]])
    matched = CenterSamplingMatcher(strides=[8], radius=1.5)(anchors, [box])
    assert (matched[0] == 0).nonzero().flatten().tolist() == [27, 28, 35, 36]


def test_the_nearest_candidates_by_hand():
    # The centre (28, 28) of the anchor 27 is that of the box, which reaches 5 px to each side: of
    # its 9 nearest anchors one is inside. Of the larger box all 9 are; 4 more are at equal
    # distance to none of them.
    anchors = grid([(8, 8)], [8])
    matcher = CenterSamplingMatcher(strides=[8], radius=None, topk=9)
    matched = matcher(anchors, [torch.tensor([[23.0, 23, 33, 33]])])
    assert (matched[0] == 0).nonzero().flatten().tolist() == [27]
    matched = matcher(anchors, [torch.tensor([[0.0, 0, 56, 56]])])
    nearest = [8 * row + column for row in (2, 3, 4) for column in (2, 3, 4)]
    assert (matched[0] == 0).nonzero().flatten().tolist() == nearest
    # Four centres at equal distance, the lower two are candidates.
    matcher = CenterSamplingMatcher(strides=[8], radius=None, topk=2)
    matched = matcher(anchors, [torch.tensor([[0.0, 0, 64, 64]])])
    assert (matched[0] == 0).nonzero().flatten().tolist() == [27, 28]


def test_center_sampling_takes_from_what_the_plain_rule_takes():
    generator = torch.Generator().manual_seed(0)
    anchors = pyramid()
    alone = list(random_boxes(60, generator)[:, None])  # each in an image of its own
    plain = ScaleRangeMatcher()(anchors, alone) >= 0
    before = torch.zeros_like(plain)
    for radius in (0.6, 1.0, 1.5, 3.0, 1000.0):
        positive = CenterSamplingMatcher(radius=radius)(anchors, alone) >= 0
        assert (before <= positive).all()
        before = positive
    assert torch.equal(before, plain)
    for topk in (1, 4, 9, 25, 9216):
        positive = CenterSamplingMatcher(radius=None, topk=topk)(anchors, alone) >= 0
        assert (positive <= plain).all()
        assert positive.sum(dim=1).max() <= 2 * topk  # a box has places on two levels at most
    assert torch.equal(positive, plain)


# ----------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("rule", [ScaleRangeMatcher, CenterSamplingMatcher])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": []}, r"strides must be positive and ascending, got \[\]"),
        ({"strides": (0, 8)}, r"strides must be positive and ascending, got \[0, 8\]"),
        ({"strides": (8, 8)}, r"strides must be positive and ascending, got \[8, 8\]"),
        ({"range_factor": 0.0}, "range_factor must be > 0, got 0.0"),
        ({"center_epsilon": -0.1}, "center_epsilon must be >= 0, got -0.1"),
        ({"inset": -0.5}, "inset must be >= 0, got -0.5"),
    ],
)
def test_arguments_out_of_range(rule, options, message):
    with pytest.raises(ValueError, match=message):
        rule(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 9}, "exactly one of radius and topk .* radius=1.5, topk=9"),
        ({"radius": None}, "exactly one of radius and topk .* radius=None, topk=None"),
        ({"radius": 0.0}, "radius must be > 0, got 0.0"),
        ({"radius": None, "topk": 0}, "topk must be >= 1, got 0"),
    ],
)
def test_arguments_of_center_sampling(options, message):
    with pytest.raises(ValueError, match=message):
        CenterSamplingMatcher(**options)


def test_levels_that_do_not_fit_the_strides():
    message = r"5 levels of strides \[8, 16, 32, 64, 128\], but there are 2 levels of anchors"
    with pytest.raises(ValueError, match=message):
        ScaleRangeMatcher()(grid([(2, 2), (1, 1)], [8, 16]), [torch.zeros(0, 4)])
