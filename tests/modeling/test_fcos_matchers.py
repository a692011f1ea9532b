"""FCOS's rule and center sampling: Detectron2's FCOS, numbers by hand."""

import pytest
import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from torch import nn

from atss_d2.modeling.matchers import BACKGROUND, CenterSamplingMatcher, ScaleRangeMatcher
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


# -------------------------------------------------------------------------- scale ranges


def levels_of(matched):
    """Levels of the only box's anchors, one anchor a level."""
    assert matched.shape[0] == 1
    assert ((matched == 0) | (matched == BACKGROUND)).all()
    return (matched[0] == 0).nonzero().flatten().tolist()


def one_anchor_a_level(strides):
    """All with the center (0, 0)."""
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


@pytest.mark.parametrize(
    ("strides", "options", "cases"),
    [
        (
            (8, 16, 32, 64),
            {"range_factor": 2.0},
            {0.5: [0], 16: [0, 1], 16.01: [1], 32: [1, 2], 64: [2, 3], 64.1: [3], 1e4: [3]},
        ),
        # Unusual strides leave no gap.
        (
            (4, 32, 40),
            {"range_factor": 1.0},
            {3: [0], 4: [0, 1], 5: [1], 32: [1, 2], 33: [2], 40: [2], 50: [2]},
        ),
        # The authors' distances are half a pixel shorter, so 64 is 64.5 for us.
        (STRIDES, {"inset": 0.5}, {64: [0], 64.5: [0, 1], 64.75: [1], 128.5: [1, 2]}),
    ],
)
def test_the_ends_of_other_ranges_by_hand(strides, options, cases):
    matcher = ScaleRangeMatcher(strides=strides, **options)
    for largest, levels in cases.items():
        box = torch.tensor([[-1.0, -1, 1, largest]])
        assert levels_of(matcher(one_anchor_a_level(strides), [box])) == levels, largest


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


# ----------------------------------------------------------------------- center sampling


def test_the_sampling_square_by_hand():
    # 8 x 8 anchors of stride 8, centers 4, 12, ..., 60. The center of the box is (32, 32): 1.5
    # strides reach from 20 to 44, excluding both; centers 28 and 36 are inside in each direction.
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
    # The center (28, 28) of the anchor 27 is that of the box, which reaches 5 px to each side: of
    # its 9 nearest anchors one is inside. Of the larger box all 9 are; 4 more are at equal
    # distance to none of them.
    anchors = grid([(8, 8)], [8])
    matcher = CenterSamplingMatcher(strides=[8], radius=None, topk=9)
    matched = matcher(anchors, [torch.tensor([[23.0, 23, 33, 33]])])
    assert (matched[0] == 0).nonzero().flatten().tolist() == [27]
    matched = matcher(anchors, [torch.tensor([[0.0, 0, 56, 56]])])
    nearest = [8 * row + column for row in (2, 3, 4) for column in (2, 3, 4)]
    assert (matched[0] == 0).nonzero().flatten().tolist() == nearest
    # Four centers at equal distance, the lower two are candidates.
    matcher = CenterSamplingMatcher(strides=[8], radius=None, topk=2)
    matched = matcher(anchors, [torch.tensor([[0.0, 0, 64, 64]])])
    assert (matched[0] == 0).nonzero().flatten().tolist() == [27, 28]


# ----------------------------------------------------------------------------------- errors


def test_levels_that_do_not_fit_the_strides():
    message = r"5 levels of strides \[8, 16, 32, 64, 128\], but there are 2 levels of anchors"
    with pytest.raises(ValueError, match=message):
        ScaleRangeMatcher()(grid([(2, 2), (1, 1)], [8, 16]), [torch.zeros(0, 4)])
