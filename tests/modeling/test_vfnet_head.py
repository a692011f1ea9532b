"""VFNet's head: published maps and gradients, the star by a loop, extremes, half precision."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling import VFNetHead
from atss_d2.modeling.predictions import predictions_from_maps
from atss_d2.modeling.vfnet_head import star_offsets
from tests import vfnet


@pytest.mark.parametrize("is_training", [True, False])
def test_maps_are_those_of_mmdetection(is_training):
    head = vfnet.published_head().train(is_training)
    maps = head(vfnet.of_levels("feat"))
    assert [len(levels) for levels in maps] == ([5, 5, 0, 5] if is_training else [5, 5])
    names = {"cls": maps[0], "reg_refine": maps[1]}
    if is_training:
        names["reg"] = maps[3]
    for name, levels in names.items():
        for stride, found, expected in zip(
            vfnet.STRIDES, levels, vfnet.of_levels(f"vfnet.{name}"), strict=True
        ):
            scale = 1 if name == "cls" else stride
            torch.testing.assert_close(found * scale, expected, rtol=1e-4, atol=1e-4)
    predictions = predictions_from_maps(maps, num_anchors=[1] * 5, num_classes=5, num_box_values=4)
    assert predictions.quality is None
    assert (predictions.first_regression is not None) == is_training


# ------------------------------------------------------------------------------------ star


def places(distances):
    """Where the nine samples of a location lie: (dy, dx) from it, in cells."""
    left, top, right, bottom = distances
    return [
        *((-top, -left), (-top, 0.0), (-top, right)),
        *((0.0, -left), (0.0, 0.0), (0.0, right)),
        *((bottom, -left), (bottom, 0.0), (bottom, right)),
    ]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 3), width=st.integers(1, 3))
def test_the_star_equals_a_loop(seed, height, width):
    """Kernel point k reads at its own place plus the k-th pair of offsets."""
    generator = torch.Generator().manual_seed(seed)
    distances = 20 * torch.rand(2, 4, height, width, generator=generator)
    offsets = star_offsets(distances)
    assert offsets.shape == (2, 18, height, width)
    for n in range(2):
        for y in range(height):
            for x in range(width):
                expected = places(distances[n, :, y, x].tolist())
                for k in range(9):
                    row, column = k // 3 - 1, k % 3 - 1
                    found = offsets[n, 2 * k : 2 * k + 2, y, x].tolist()
                    place = (row + found[0], column + found[1])
                    assert place == pytest.approx(expected[k], abs=1e-5)


def test_a_box_of_a_cell_around_is_the_kernel_itself():
    assert (star_offsets(torch.ones(1, 4, 2, 3)) == 0).all()


def test_samples_lie_on_the_first_box():
    """A map that holds its own coordinates, and kernels that read one sample each."""
    head = VFNetHead(input_shape=[ShapeSpec(channels=2)], num_classes=1, conv_dims=[], norm="")
    distances = torch.tensor([3.0, 1.5, 2.25, 4.0]).view(1, 4, 1, 1).expand(1, 4, 12, 12)
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    offsets = star_offsets(distances)
    for k, (dy, dx) in enumerate(places([3.0, 1.5, 2.25, 4.0])):
        with torch.no_grad():
            head.bbox_star.weight.zero_()
            for channel in range(2):
                head.bbox_star.weight[channel, channel, k // 3, k % 3] = 1
        found = head.bbox_star(torch.stack((y, x))[None], offsets)[0, :, 5, 6]
        assert found.tolist() == pytest.approx([5 + dy, 6 + dx], abs=1e-5)


# -------------------------------------------------------------------------------- gradients


def tiny_head(**options):
    """A head of four channels in float64, whose first boxes are of 1 to 3 cells."""
    torch.manual_seed(0)
    head = VFNetHead(
        input_shape=[ShapeSpec(channels=4)],
        num_classes=2,
        conv_dims=[4],
        norm="",
        conv_bias=True,
        **{"unit_distance": 1.3, **options},
    ).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, mean=0.05, std=0.2)
    return head


def test_gradients_equal_finite_differences():
    """With the whole gradient through the samples; ``detach`` is not a function of values."""
    feature = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    head = tiny_head(star_gradient=1.0)

    def logits_and_first(x):
        logits, _, _, first = head([x])
        return logits[0], first[0]

    assert torch.autograd.gradcheck(logits_and_first, feature, atol=1e-5)
    distances = (3 * torch.rand_like(feature) + 0.1).detach().requires_grad_()
    assert torch.autograd.gradcheck(star_offsets, distances)


def test_the_samples_give_a_tenth_of_their_gradient_to_the_first_box():
    feature = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    gradients = {}
    for factor in (1.0, 0.1):
        head = tiny_head(star_gradient=factor)
        logits, refined, _, first = head([feature])
        (logits[0].sum() + refined[0].sum()).backward()
        gradients[factor] = head.bbox_pred.weight.grad
        assert torch.equal(first[0], tiny_head(star_gradient=1.0)([feature])[3][0])
    assert gradients[1.0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[0.1], 0.1 * gradients[1.0])


def test_a_refined_box_trains_no_first_box_but_by_its_samples():
    head = tiny_head(star_gradient=0.0)
    logits, refined, _, first = head([torch.randn(1, 4, 3, 3, dtype=torch.float64)])
    (logits[0].sum() + refined[0].sum()).backward(retain_graph=True)
    assert (head.bbox_pred.weight.grad == 0).all()
    first[0].sum().backward()
    assert (head.bbox_pred.weight.grad != 0).any()


@pytest.mark.parametrize("value", [1e4, -1e4])
@pytest.mark.parametrize("predictor", ["bbox_pred", "refined_pred", "cls_score"])
def test_extreme_outputs_have_finite_gradients(predictor, value):
    head = vfnet.toy_head()
    with torch.no_grad():
        getattr(head, predictor).bias.fill_(value)
    features = [torch.randn(1, 64, 4, 4, requires_grad=True)]
    logits, refined, _, first = head([*features, torch.randn(1, 64, 2, 2)])
    sum(x.sum() for x in (*logits, *refined, *first)).backward()
    for x in (*logits, *refined, *first, features[0].grad):
        assert x.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)
    if predictor == "bbox_pred":  # two strides times at most 62.5, or times zero
        torch.testing.assert_close(first[0], torch.full_like(first[0], 125.0 if value > 0 else 0))


def test_what_is_not_a_number_stays_so():
    head = vfnet.toy_head()
    _, refined, _, first = head([torch.full((1, 64, 4, 4), math.nan)] * 2)
    assert first[0].isnan().all()
    assert refined[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_autocast", [True, False])
def test_half_precision(dtype, is_autocast):
    """Distances stay in float32, in which exp(20) does not overflow; as a model, or by autocast."""
    head = vfnet.toy_head()
    features = [torch.randn(1, 64, 8, 8), torch.randn(1, 64, 4, 4)]
    expected = head(features)
    if is_autocast:
        with torch.autocast("cpu", dtype=dtype):
            found = head(features)
    else:
        found = head.to(dtype)([x.to(dtype) for x in features])
        head.bbox_pred.bias.data.fill_(20)
        assert head([x.to(dtype) for x in features])[3][0].isfinite().all()
    assert {x.dtype for x in found[0]} == {dtype}
    assert {x.dtype for x in (*found[1], *found[3])} == {torch.float32}
    for i in (0, 1, 3):
        torch.testing.assert_close(found[i][0].float(), expected[i][0], rtol=0.02, atol=0.02)


# ----------------------------------------------------------------------------------- errors


def test_a_new_head_starts_at_the_prior_and_with_boxes_of_16_strides():
    head = VFNetHead(input_shape=[ShapeSpec(channels=32)] * 2, num_classes=4, conv_dims=[32])
    logits, refined, _, first = head([torch.zeros(1, 32, 4, 4)] * 2)
    assert logits[1].sigmoid().flatten().tolist() == pytest.approx([0.01] * 64)
    assert (refined[1] == 8).all()
    assert (first[1] == 8).all()
    assert head.cls_star.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not any("bias" in name for name, _ in head.cls_subnet[0].named_parameters())
    assert isinstance(head.first_subnet[1], torch.nn.GroupNorm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_anchors": 3}, "one anchor per location: got num_anchors=3 and num_box_values=4"),
        ({"num_box_values": 68}, "got num_anchors=1 and num_box_values=68"),
        ({"unit_distance": 0.0}, "unit_distance must be > 0, got 0.0"),
        ({"prior_prob": 1.0}, "prior_prob must be between 0 and 1, got 1.0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        vfnet.toy_head(**options)


def test_another_number_of_levels():
    with pytest.raises(ValueError, match="built for 2 levels, got 1"):
        vfnet.toy_head()([torch.zeros(1, 64, 4, 4)])
