"""TOOD's head: its scores, its sampling of sides and its decomposition, held against loops."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling import TOODHead
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.tood_head import (
    TaskDecomposition,
    geometric_mean_logits,
    sample_sides,
)
from tests.detector import CHANNELS
from tests.reference import sigmoid
from tests.tood import tood_head


def features(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, CHANNELS, *size, generator=generator) for size in sizes]


# Scores

FINITE = st.floats(-12, 12, width=32)


@given(a=FINITE, b=FINITE)
def test_scores_are_geometric_means(a, b):
    p = math.sqrt(sigmoid(a) * sigmoid(b))
    x, y = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (a, b))
    logit = geometric_mean_logits(x, y)
    assert logit.item() == pytest.approx(math.log(p / (1 - p)), rel=1e-7, abs=1e-7)
    logit.backward()
    # dp/da = p (1 - sigmoid(a)) / 2, without the zero over zero of the root.
    for value, variable in ((a, x), (b, y)):
        expected = sigmoid(-value) / (2 * (1 - p))
        assert variable.grad.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1e4, 1e4, 1e4),  # equal logits are their own mean
        (-1e4, -1e4, -1e4),
        (200.0, 200.0, 200.0),
        (-1e4, 1e4, -5e3),  # p = sqrt(sigmoid(a))
        (0.0, 1e4, math.log(math.sqrt(0.5) / (1 - math.sqrt(0.5)))),
        (80.0, 1e4, 80 + math.log(2)),  # 1 - p = exp(-a) / 2
    ],
)
def test_extreme_logits_have_finite_scores_and_gradients(a, b, expected):
    x, y = (torch.tensor([value], requires_grad=True) for value in (a, b))
    for logit in (geometric_mean_logits(x, y), geometric_mean_logits(y, x)):
        assert logit.item() == pytest.approx(expected, rel=1e-6)
        grads = torch.autograd.grad(logit, (x, y))
        assert all(0 <= grad.item() + 1e-6 <= 1 + 2e-6 for grad in grads)


def test_one_alignment_score_counts_for_all_classes_and_half_precision_is_widened():
    a, b = torch.randn(2, 3, 4, 5).half() * 5, torch.randn(2, 1, 4, 5).half() * 5
    logits = geometric_mean_logits(a, b)
    assert logits.dtype == torch.float32
    expected = (a.double().sigmoid() * b.double().sigmoid()).sqrt()
    torch.testing.assert_close(logits.double().sigmoid(), expected, rtol=1e-5, atol=1e-7)


# Sampling


def read(values, y, x):
    """The value of a map (H, W) at a position in cells, bilinear, 0 outside."""
    total = 0.0
    row, column = math.floor(y), math.floor(x)
    for i in (row, row + 1):
        for j in (column, column + 1):
            if 0 <= i < len(values) and 0 <= j < len(values[0]):
                total += (1 - abs(y - i)) * (1 - abs(x - j)) * values[i][j]
    return total


def sampled_boxes(distances, offsets, anchor_offset):
    """The boxes of one image in strides, [row][column], and which of them fell back."""
    _, height, width = distances.shape
    sides = [[[0.0] * width for _ in range(height)] for _ in range(4)]
    for i in range(height):
        for j in range(width):
            x, y = j + anchor_offset, i + anchor_offset
            left, top, right, bottom = distances[:, i, j].tolist()
            for k, side in enumerate((x - left, y - top, x + right, y + bottom)):
                sides[k][i][j] = side
    boxes = [[None] * width for _ in range(height)]
    falls = 0
    for i in range(height):
        for j in range(width):
            box = []
            for k in range(4):
                dy, dx = offsets[2 * k, i, j].item(), offsets[2 * k + 1, i, j].item()
                box.append(read(sides[k], i + dy, j + dx))
            if box[0] > box[2] or box[1] > box[3]:
                box = [sides[k][i][j] for k in range(4)]
                falls += 1
            boxes[i][j] = box
    return torch.tensor(boxes, dtype=torch.float64), falls


def as_boxes(distances, anchor_offset):
    """Distances (N, 4, H, W) -> boxes (N, H, W, 4) in strides."""
    height, width = distances.shape[-2:]
    y, x = torch.arange(height)[:, None] + anchor_offset, torch.arange(width) + anchor_offset
    left, top, right, bottom = distances.unbind(1)
    return torch.stack((x - left, y - top, x + right, y + bottom), dim=-1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    size=st.sampled_from([0.3, 2.0, 20.0]),
    anchor_offset=st.sampled_from([0.0, 0.5]),
)
def test_sides_are_read_at_their_offsets(seed, height, width, size, anchor_offset):
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(2, 4, height, width, generator=generator) * 4
    offsets = torch.randn(2, 8, height, width, generator=generator) * size
    offsets[0, 0] = 1.0  # on a cell
    found = as_boxes(sample_sides(distances, offsets, anchor_offset), anchor_offset)
    for i in range(2):
        expected, _ = sampled_boxes(distances[i], offsets[i], anchor_offset)
        torch.testing.assert_close(found[i].double(), expected, rtol=1e-5, atol=1e-5)


def test_without_offsets_boxes_stay():
    distances = torch.rand(1, 4, 5, 7) * 4
    found = sample_sides(distances, torch.zeros(1, 8, 5, 7), 0.5)
    torch.testing.assert_close(found, distances)


def test_sides_outside_the_map_are_zero_and_inverted_boxes_fall_back():
    distances = torch.ones(1, 4, 3, 4)
    offsets = torch.zeros(1, 8, 3, 4)
    offsets[:, 1] = -9.0  # the left side, beyond the border
    found = as_boxes(sample_sides(distances, offsets, 0.5), 0.5)
    assert (found[..., 0] == 0).all()
    offsets[:, 1], offsets[:, 5] = 0.0, 9.0  # the right side
    found = as_boxes(sample_sides(distances, offsets, 0.5), 0.5)
    # Right of 0.5, a left side is beyond a right side of 0; at 0.5, it is at -0.5.
    assert found[0, :, 0, 2].tolist() == [0.0] * 3
    torch.testing.assert_close(found[:, :, 1:], as_boxes(distances, 0.5)[:, :, 1:])


def test_distances_may_become_negative():
    """A box whose sides are those of other cells may lie beside its anchor."""
    distances = torch.ones(1, 4, 3, 9)
    offsets = torch.zeros(1, 8, 3, 9)
    offsets[:, 1::2] = 4.0  # all sides four cells to the right
    found = sample_sides(distances, offsets, 0.5)
    assert (found[0, 0, :, :5] == -3).all()
    anchors = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    box = PointDistances(clamp=False).apply_deltas(found[:, :, 0, 0], anchors)
    assert box.tolist() == [[32 + 24, 24, 32 + 40, 40]]
    clamped = PointDistances().apply_deltas(found[:, :, 0, 0], anchors)
    assert clamped.tolist() == [[32, 24, 32 + 40, 40]]


def test_gradients_in_double_precision():
    generator = torch.Generator().manual_seed(0)
    distances = torch.rand(1, 4, 3, 4, generator=generator, dtype=torch.float64) * 3
    offsets = torch.randn(1, 8, 3, 4, generator=generator, dtype=torch.float64)
    # Finite differences must not cross a cell.
    offsets = offsets.floor() + 0.1 + 0.8 * (offsets - offsets.floor())
    inputs = distances.requires_grad_(), offsets.requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: sample_sides(*x, 0.5), inputs)
    logits = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64) * 4
    shared = torch.randn(2, 1, 2, 2, generator=generator, dtype=torch.float64) * 4
    inputs = logits.requires_grad_(), shared.requires_grad_()
    assert torch.autograd.gradcheck(geometric_mean_logits, inputs)


def test_positions_in_half_precision_are_computed_in_float32():
    distances = torch.rand(1, 4, 2, 300)
    offsets = (torch.randn(1, 8, 2, 300) * 2).half()
    torch.testing.assert_close(
        sample_sides(distances, offsets, 0.5), sample_sides(distances, offsets.float(), 0.5)
    )


def test_offsets_that_are_not_finite_show():
    """NaN becomes NaN, and no memory outside of the map is read."""
    distances = torch.ones(1, 4, 2, 3)
    offsets = torch.zeros(1, 8, 2, 3)
    offsets[0, 0, 0, 0] = math.nan
    found = sample_sides(distances, offsets, 0.5)
    assert found[0, 1:, 0, 0].tolist() == [1.0] * 3
    assert math.isnan(found[0, 0, 0, 0])
    assert found.flatten(2)[:, :, 1:].eq(1).all()


# The head


@torch.no_grad()
def test_a_decomposition_mixes_weighted_layers():
    """Layers times their weights, and a 1x1 convolution of them (Eq. 3 to 5)."""
    torch.manual_seed(0)
    part = TaskDecomposition(3, CHANNELS, "GN")
    torch.nn.init.normal_(part.layer_attention[0].weight, std=1.0)
    torch.nn.init.normal_(part.layer_attention[2].weight, std=1.0)
    shared = torch.randn(2, 3 * CHANNELS, 4, 5)
    found = part(shared, shared.mean((2, 3), keepdim=True))
    for n in range(2):
        pooled = shared[n].mean((1, 2))
        first, second = part.layer_attention[0], part.layer_attention[2]
        hidden = (first.weight[:, :, 0, 0] @ pooled + first.bias).relu()
        weights = (second.weight[:, :, 0, 0] @ hidden + second.bias).sigmoid()
        assert weights.std() > 0.05
        layers = torch.cat(
            [shared[n, CHANNELS * s : CHANNELS * (s + 1)] * weights[s] for s in range(3)]
        )
        mixed = torch.einsum("oc,chw->ohw", part.reduction.weight[:, :, 0, 0], layers)
        expected = part.norm(mixed[None]).relu()[0]
        torch.testing.assert_close(found[n], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_initial_predictions():
    """Every score is the prior, and boxes reach one stride to all sides."""
    torch.manual_seed(0)
    shapes = [ShapeSpec(channels=CHANNELS)] * 2
    head = TOODHead(input_shape=shapes, num_classes=3, conv_dims=[CHANNELS] * 3, prior_prob=0.02)
    logits, distances = head(features((6, 8), (3, 4)))
    for level in range(2):
        assert logits[level].sigmoid().mean() == pytest.approx(0.02, rel=0.2)
        assert distances[level].mean() == pytest.approx(1, rel=0.3)
    small = [*head.cls_decomposition.layer_attention, *head.side_offsets]
    stds = [x.weight.std().item() for x in small if isinstance(x, torch.nn.Conv2d)]
    assert stds == pytest.approx([0.001] * 4, rel=0.5)
    assert head.bbox_pred.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_gradients_are_finite_where_predictions_are_extreme(bias):
    head = tood_head()
    for part in (head.cls_score, head.alignment[-1], head.bbox_pred, head.side_offsets[-1]):
        torch.nn.init.constant_(part.bias, bias)
    logits, distances = head(features((4, 5), (2, 3)))
    sum((x.sigmoid().sum() for x in logits), sum(x.sum() for x in distances)).backward()
    for x in (*logits, *distances):
        assert x.isfinite().all()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_autocast_computes_geometry_in_float32():
    head = tood_head()
    maps = features((6, 8), (3, 4))
    expected = head(maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(maps)
    for ours, theirs in zip(found, expected):
        for x, y in zip(ours, theirs):
            assert x.dtype == torch.float32
            assert (x - y).abs().median() < 0.1 * y.abs().median()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_it_can_be_scripted_for_all_sizes():
    head = tood_head().eval()
    scripted = torch.jit.script(head)
    for sizes in (((6, 8), (3, 4)), ((1, 1), (1, 1)), ((1, 9), (1, 5))):
        torch.testing.assert_close(scripted(features(*sizes)), head(features(*sizes)))


@torch.no_grad()
@pytest.mark.parametrize("norm", ["", "BN"])
def test_other_norms(norm):
    head = tood_head(norm=norm)
    head(features((6, 8), (3, 4)))
    kinds = {type(x).__name__ for x in head.modules()}
    assert "GroupNorm" not in kinds
    assert ("BatchNorm2d" in kinds) == (norm == "BN")
    assert (head.shared_convs[0][0].bias is None) == bool(norm)


def anchors_at(offset):
    return DefaultAnchorGenerator(
        sizes=[[64], [128]], aspect_ratios=[1.0], strides=[8, 16], offset=offset
    )


def test_parts_that_do_not_fit():
    head = tood_head()
    head.check_fit(anchors_at(0.5), PointDistances(clamp=False))
    for coder in (PointDistances(), Box2BoxTransform((1.0, 1.0, 1.0, 1.0))):
        with pytest.raises(ValueError, match=r"set box2box_transform to PointDistances\(clamp=Fal"):
            head.check_fit(anchors_at(0.5), coder)
    with pytest.raises(ValueError, match=r"anchor_offset=0\.5, but the .* has offset=0\.0: set"):
        head.check_fit(anchors_at(0.0), PointDistances(clamp=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_anchors": 3}, "needs num_anchors=1, got 3"),
        ({"num_box_values": 68}, "needs num_box_values=4, got 68"),
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"prior_prob": 1.0}, "prior_prob must be between 0 and 1, got 1.0"),
        ({"conv_dims": []}, r"conv_dims must be one or more equal numbers.*got \[\]"),
        ({"conv_dims": [32, 64]}, r"conv_dims must be one or more equal numbers.*got \[32, 64\]"),
        (
            {"input_shape": [ShapeSpec(channels=32), ShapeSpec(channels=64)]},
            r"same number of channels, got \[32, 64\]",
        ),
    ],
    ids=str,
)
def test_arguments_out_of_range(options, message):
    options = {"input_shape": [ShapeSpec(channels=32)], "num_classes": 3, **options}
    with pytest.raises(ValueError, match=message):
        TOODHead(**options)


def test_other_numbers_of_levels():
    with pytest.raises(ValueError, match="built for 2 levels, got 1"):
        tood_head()(features((4, 4)))
