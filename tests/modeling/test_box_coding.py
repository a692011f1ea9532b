"""Box coders: hand-computed distances, inverses, Detectron2's own coders."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear

from atss_d2.modeling.box_coding import PointDistances, TwoSidedBox2BoxTransform

coordinates = st.integers(0, 400).map(float)
quick = hypothesis.settings(max_examples=60, derandomize=True)


@st.composite
def boxes_around_points(draw):
    """Anchors (R, 4) of one stride and boxes (R, 4) that hold their centers."""
    stride = draw(st.sampled_from([4, 8, 128]))
    rows = draw(st.lists(st.tuples(*[coordinates] * 6), min_size=1, max_size=5))
    x, y, left, top, right, bottom = torch.tensor(rows).unbind(dim=1)
    half = 4.0 * stride
    anchors = torch.stack((x - half, y - half, x + half, y + half), dim=1)
    return anchors, torch.stack((x - left, y - top, x + right, y + bottom), dim=1)


def test_distances_by_hand():
    # Center (100, 60), side 64 = 8 strides of 8 px.
    anchors = torch.tensor([[68.0, 28, 132, 92]])
    boxes = torch.tensor([[84.0, 52, 140, 60]])
    distances = torch.tensor([[16 / 8, 8 / 8, 40 / 8, 0 / 8]])
    torch.testing.assert_close(PointDistances().get_deltas(anchors, boxes), distances)
    torch.testing.assert_close(PointDistances().apply_deltas(distances, anchors), boxes)
    # The same anchor as one of 4 strides of 16 px.
    coder = PointDistances(anchor_scale=4)
    torch.testing.assert_close(coder.get_deltas(anchors, boxes), distances / 2)
    torch.testing.assert_close(coder.apply_deltas(distances / 2, anchors), boxes)


def test_the_start_of_the_paper_is_a_box_of_eight_strides():
    """bbox_pred starts at 4 strides to each side: the anchor itself."""
    anchors = torch.tensor([[68.0, 28, 132, 92], [0, 0, 1024, 1024]])
    torch.testing.assert_close(
        PointDistances().apply_deltas(torch.full((2, 4), 4.0), anchors), anchors
    )


def test_of_other_shapes_the_area_tells_the_stride():
    tall = torch.tensor([[92.0, 28, 108, 284]])  # 16 x 256 = 64 x 64 px
    boxes = PointDistances().apply_deltas(torch.tensor([[1.0, 2, 3, 4]]), tall)
    torch.testing.assert_close(boxes, torch.tensor([[100.0 - 8, 156 - 16, 100 + 24, 156 + 32]]))


def test_negative_distances_count_as_zero():
    anchors = torch.tensor([[68.0, 28, 132, 92]])
    deltas = torch.tensor([[-1.0, -5, 2, -0.1]], requires_grad=True)
    boxes = PointDistances().apply_deltas(deltas, anchors)
    torch.testing.assert_close(boxes, torch.tensor([[100.0, 60, 116, 60]]))
    boxes.sum().backward()
    torch.testing.assert_close(deltas.grad, torch.tensor([[0.0, 0, 8, 0]]))


def test_an_inset_shortens_all_distances():
    anchors, boxes = torch.tensor([[68.0, 28, 132, 92]]), torch.tensor([[84.0, 52, 140, 68]])
    coder = PointDistances(inset=0.5)
    distances = torch.tensor([[15.5 / 8, 7.5 / 8, 39.5 / 8, 7.5 / 8]])
    torch.testing.assert_close(coder.get_deltas(anchors, boxes), distances)
    torch.testing.assert_close(coder.apply_deltas(distances, anchors), boxes)


@quick
@hypothesis.given(
    boxes_around_points(), st.sampled_from([1.0, 4.0, 8.0]), st.sampled_from([0.0, 0.5])
)
def test_point_distances_are_their_own_inverse(scene, anchor_scale, inset):
    anchors, boxes = scene
    coder = PointDistances(anchor_scale=anchor_scale, inset=inset)
    boxes = boxes + inset * torch.tensor([-1.0, -1, 1, 1])
    deltas = coder.get_deltas(anchors, boxes)
    assert (deltas >= -1e-5).all()
    torch.testing.assert_close(coder.apply_deltas(deltas, anchors), boxes, rtol=1e-5, atol=1e-3)


@quick
@hypothesis.given(boxes_around_points())
def test_with_scale_1_it_is_the_coder_of_detectron2s_fcos(scene):
    """Its anchors have the side of their stride."""
    anchors, boxes = scene
    theirs, ours = Box2BoxTransformLinear(normalize_by_size=True), PointDistances(anchor_scale=1)
    deltas = theirs.get_deltas(anchors, boxes)
    torch.testing.assert_close(ours.get_deltas(anchors, boxes), deltas)
    predicted = deltas - 0.5  # some are negative
    torch.testing.assert_close(
        ours.apply_deltas(predicted, anchors), theirs.apply_deltas(predicted, anchors)
    )


@pytest.mark.parametrize("weights", [(10.0, 10.0, 5.0, 5.0), (1.0, 2.0, 3.0, 4.0)])
def test_with_a_clamp_on_both_sides_only_tiny_boxes_are_larger(weights):
    one_sided = Box2BoxTransform(weights=weights)
    two_sided = TwoSidedBox2BoxTransform(weights=weights)
    limit = math.log(1000 / 16)
    anchors = torch.tensor([[-500.0, -500, 500, 500]]).repeat(200, 1)
    dw, dh = torch.empty(2, 200).uniform_(-2 * limit, 2 * limit)
    deltas = torch.stack((torch.randn(200), torch.randn(200), dw * weights[2], dh * weights[3]), 1)
    boxes = two_sided.apply_deltas(deltas, anchors)
    sides = boxes[:, 2:] - boxes[:, :2]
    log_sides = torch.stack((dw, dh), dim=1).clamp(-limit, limit)
    torch.testing.assert_close(sides, 1000 * log_sides.exp(), rtol=1e-4, atol=1e-2)
    # Centers, and boxes that are not tiny, are those of Detectron2's coder.
    theirs = one_sided.apply_deltas(deltas, anchors)
    is_tiny = (torch.stack((dw, dh), dim=1) < -limit).any(dim=1)
    assert 20 < is_tiny.sum() < 180
    torch.testing.assert_close(boxes[~is_tiny], theirs[~is_tiny], rtol=0, atol=0)
    torch.testing.assert_close(
        boxes[:, :2] + boxes[:, 2:], theirs[:, :2] + theirs[:, 2:], rtol=1e-4, atol=0.1
    )
    decoded = boxes[~is_tiny]
    torch.testing.assert_close(
        two_sided.get_deltas(anchors[~is_tiny], decoded),
        one_sided.get_deltas(anchors[~is_tiny], decoded),
        rtol=0,
        atol=0,
    )


def test_no_anchors():
    nothing = torch.zeros(0, 4)
    for coder in (PointDistances(), TwoSidedBox2BoxTransform((10.0, 10.0, 5.0, 5.0))):
        assert coder.get_deltas(nothing, nothing).shape == (0, 4)
        assert coder.apply_deltas(nothing, nothing).shape == (0, 4)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="anchor_scale must be > 0, got 0"):
        PointDistances(anchor_scale=0)
    with pytest.raises(ValueError, match="inset must be >= 0, got -1"):
        PointDistances(inset=-1)
