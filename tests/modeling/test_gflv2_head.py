"""GFLv2's head: its score against the definition, its logits at the ends of the range."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling import GFLv2Head
from atss_d2.modeling.gflv2_head import product_logits

CHANNELS, NUM_CLASSES = 32, 3


def build(**arguments):
    torch.manual_seed(0)
    return GFLv2Head(
        **{
            "input_shape": [ShapeSpec(channels=CHANNELS)] * 2,
            "num_classes": NUM_CLASSES,
            "num_box_values": 4 * 6,
            "conv_dims": [CHANNELS],
            **arguments,
        }
    )


def randomize(head):
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return head


def test_scores_are_products_by_the_definition():
    head = randomize(build(topk=3, quality_channels=5))
    features = [torch.randn(2, CHANNELS, 3, 4), torch.randn(2, CHANNELS, 2, 2)]
    logits, boxes = head(features)
    for level, feature in enumerate(features):
        box = head.scales[level](head.bbox_pred(head.bbox_subnet(feature)))
        torch.testing.assert_close(boxes[level], box)
        class_scores = head.cls_score(head.cls_subnet(feature)).sigmoid()
        first, _, second = head.quality
        for n in range(2):
            for y in range(feature.shape[2]):
                for x in range(feature.shape[3]):
                    values = []
                    for side in box[n, :, y, x].view(4, 6):
                        best = sorted(side.softmax(0).tolist(), reverse=True)[:3]
                        values += [*best, sum(best) / 3]
                    hidden = (first.weight[:, :, 0, 0] @ torch.tensor(values) + first.bias).relu()
                    quality = (second.weight[0, :, 0, 0] @ hidden + second.bias[0]).sigmoid()
                    torch.testing.assert_close(
                        logits[level][n, :, y, x].sigmoid(), class_scores[n, :, y, x] * quality
                    )


def test_every_score_starts_at_half_the_prior():
    logits, _ = build()([torch.zeros(1, CHANNELS, 2, 2)] * 2)
    torch.testing.assert_close(logits[0].sigmoid(), torch.full((1, NUM_CLASSES, 2, 2), 0.005))


def test_gradients_reach_all_parameters():
    head = build()
    logits, boxes = head([torch.randn(2, CHANNELS, 3, 4)] * 2)
    sum(x.square().mean() for x in (*logits, *boxes)).backward()
    assert all(parameter.grad.any() for parameter in head.parameters())


@settings(max_examples=200, deadline=None)
@given(x=st.floats(-30, 30), y=st.floats(-30, 30))
def test_logits_of_a_product(x, y):
    p = 1 / (1 + math.exp(-x)) / (1 + math.exp(-y))
    found = product_logits(*torch.tensor([x, y], dtype=torch.float64)).item()
    if p < 1 - 1e-9:
        assert found == pytest.approx(math.log(p) - math.log1p(-p), rel=1e-6, abs=1e-6)
    assert found <= min(x, y) + 1e-9


@pytest.mark.parametrize("x", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("y", [-1e4, 0.0, 1e4])
def test_extreme_logits_have_finite_gradients(x, y):
    inputs = [torch.tensor(value, requires_grad=True) for value in (x, y)]
    found = product_logits(*inputs)
    found.backward()
    assert torch.isfinite(found)
    assert all(torch.isfinite(value.grad) for value in inputs)


def test_gradients_equal_finite_differences():
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(20, generator=rng).double().mul(5).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(product_logits, (x, y))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_box_values": 22},
            "must be 4 times the bins of a side, .* got 22",
        ),
        ({"num_box_values": 12}, "at least topk=4 bins, got 12"),
        ({"num_anchors": 2}, "num_anchors=1, got 2"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)
