"""The head: shapes, sharing, start values and the outputs of the authors' head."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import nn

from atss_d2.modeling.deform_conv import ModulatedDeformConvPack
from atss_d2.modeling.head import ATSSHead
from tests import reference

published = reference.published()


def build(num_levels=2, channels=32, **options):
    input_shape = [ShapeSpec(channels=channels)] * num_levels
    options = {"input_shape": input_shape, "num_classes": 3, "conv_dims": [32, 32], **options}
    return ATSSHead(**options)


def randomize(module, std=0.1):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module


# ---------------------------------------------------------------------------- public numbers


@pytest.mark.parametrize("regression", ["box", "point"])
def test_outputs_are_those_of_the_authors_head(regression):
    names = {
        "cls_tower": "cls_subnet",
        "bbox_tower": "bbox_subnet",
        "cls_logits": "cls_score",
        "centerness": "ctrness",
    }
    prefix = "authors.atss_box.sd.rpn.head."
    state_dict = {}
    for key, value in published.items():
        if key.startswith(prefix):
            room, rest = key[len(prefix) :].split(".", 1)
            value = torch.from_numpy(value)
            # Their scalars have shape (1,).
            value = value.reshape(()) if room == "scales" else value
            state_dict[f"{names.get(room, room)}.{rest}"] = value

    if regression == "point":  # all else is equal
        bias = published["authors.atss_point.sd.rpn.head.bbox_pred.bias"]
        state_dict["bbox_pred.bias"] = torch.from_numpy(bias)

    head = ATSSHead(
        input_shape=[ShapeSpec(channels=32)] * 5, num_classes=5, conv_dims=[32, 32, 32, 32]
    )
    head.load_state_dict(state_dict)
    features = [torch.from_numpy(published[f"feat_{level}"]) for level in range(5)]
    with torch.no_grad():
        outputs = head(features)

    for output, name in zip(outputs, ("cls", "reg", "ctr"), strict=True):
        source = f"authors.atss_{regression if name == 'reg' else 'box'}"
        for level in range(5):
            ours = output[level]
            if source == "authors.atss_point":  # our ReLU is in the box coder
                ours = ours.relu()
            theirs = torch.from_numpy(published[f"{source}.{name}_{level}"])[:1]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------- layout and shapes


def test_levels_share_everything_but_the_scalar_of_the_boxes():
    head = randomize(build(3))
    feature = torch.randn(1, 32, 5, 5)
    logits, deltas, centerness = head([feature] * 3)
    for level in (1, 2):
        torch.testing.assert_close(logits[level], logits[0])
        torch.testing.assert_close(centerness[level], centerness[0])
        ratio = head.scales[level].scale / head.scales[0].scale
        torch.testing.assert_close(deltas[level], deltas[0] * ratio)


@pytest.mark.parametrize("conv_dims", [[64, 32], []])
def test_towers_may_change_width_or_be_empty(conv_dims):
    head = build(1, channels=8, conv_dims=conv_dims)
    assert head([torch.randn(1, 8, 4, 4)])[0][0].shape == (1, 3, 4, 4)


# -------------------------------------------------------------------------------- the start


@pytest.mark.parametrize("prior_prob", [0.01, 0.3])
def test_start_values(prior_prob):
    head = ATSSHead(
        input_shape=[ShapeSpec(channels=64)] * 3,
        num_classes=80,
        conv_dims=[64, 64],
        prior_prob=prior_prob,
        bbox_pred_bias=4.0,
    )
    for name, module in head.named_modules():
        if isinstance(module, nn.Conv2d):
            # The mean of n draws scatters by 0.01 / sqrt(n), n >= 576.
            assert abs(module.weight.mean()) < 0.002, name
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.15), name
            if name != "cls_score":
                assert (module.bias == (4.0 if name == "bbox_pred" else 0.0)).all(), name
    torch.testing.assert_close(head.cls_score.bias.sigmoid(), torch.full((80,), prior_prob))
    assert [s.scale.item() for s in head.scales] == [1.0] * 3


# --------------------------------------------------------------------------- deformable towers


def test_only_the_last_convolution_of_both_towers_is_deformable():
    head = build(1, conv_dims=[32, 32, 32], deform_last_conv=True)
    for tower in (head.cls_subnet, head.bbox_subnet):
        kinds = [type(layer) for layer in tower]
        plain = [nn.Conv2d, nn.GroupNorm, nn.ReLU]
        assert kinds == plain * 2 + [ModulatedDeformConvPack, nn.GroupNorm, nn.ReLU]


def test_a_deformable_convolution_starts_without_offsets_and_half_open():
    """Offsets are 0 and masks sigmoid(0) = 1/2: half a plain convolution, before the norm."""
    head = build(1, conv_dims=[32], deform_last_conv=True)
    layer = head.cls_subnet[0]
    weights = dict(layer.named_parameters())
    assert (weights["offset.weight"] == 0).all()
    assert (weights["offset.bias"] == 0).all()
    assert weights["conv.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    assert (weights["conv.bias"] == 0).all()
    x = torch.randn(2, 32, 6, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, weights["conv.weight"] / 2, padding=1))


def test_gradient_reaches_every_parameter_of_a_deformable_head():
    head = randomize(build(2, deform_last_conv=True))
    outputs = head([torch.randn(1, 32, 6, 6), torch.randn(1, 32, 3, 3)])
    sum(m.square().sum() for maps in outputs for m in maps).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("deform_last_conv", [False, True])
def test_towers_may_have_no_biases(deform_last_conv):
    """Then they are those of a head whose biases are 0."""
    head = build(1, conv_bias=False, deform_last_conv=deform_last_conv)
    other = build(1, deform_last_conv=deform_last_conv)
    missing, unexpected = other.load_state_dict(head.state_dict(), strict=False)
    last = "3.conv" if deform_last_conv else "3"
    assert set(missing) == {
        f"{tower}.{conv}.bias" for tower in ("cls_subnet", "bbox_subnet") for conv in ("0", last)
    }
    assert unexpected == []
    x = [torch.randn(1, 32, 5, 6)]
    for ours, theirs in zip(head(x), other(x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ({"num_anchors": 0}, "num_anchors must be >= 1, got 0"),
        ({"deform_last_conv": True, "conv_dims": []}, "deform_last_conv needs at least one"),
        ({"prior_prob": 0.0}, "prior_prob must be between 0 and 1, got 0.0"),
        ({"prior_prob": 1.0}, "prior_prob must be between 0 and 1, got 1.0"),
        (
            {"input_shape": [ShapeSpec(channels=32), ShapeSpec(channels=64)]},
            r"same number of channels, got \[32, 64\]",
        ),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_the_number_of_levels_must_be_that_of_the_head():
    head = build(2)
    with pytest.raises(ValueError, match="built for 2 levels, got 1"):
        head([torch.randn(1, 32, 4, 4)])
