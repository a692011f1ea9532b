"""DyHead against mmdetection's numbers, a loop written from the paper, and its own promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn

from atss_d2.modeling import ATSSHead, DyHead
from atss_d2.modeling.dyhead import DyHeadBlock, DyReLU
from tests import reference

published = reference.published_quality()
SIZES = [(9, 7), (5, 4), (3, 2)]  # odd ones; the next is half, rounded up

# mmdetection's names of a block's parts -> ours.
PARTS = {
    "spatial_conv_high.conv": "upper",
    "spatial_conv_high.norm": "upper.norm",
    "spatial_conv_mid.conv": "same",
    "spatial_conv_mid.norm": "same.norm",
    "spatial_conv_low.conv": "lower",
    "spatial_conv_low.norm": "lower.norm",
    "spatial_conv_offset": "offset",
    "scale_attn_module.1": "level_weight",
    "task_attn_module.conv1.conv": "activation.squeeze",
    "task_attn_module.conv2.conv": "activation.expand",
}


class Pyramid(Backbone):
    """Maps of one convolution, each half as large as the one before."""

    def __init__(self, num_levels=3, channels=16, divisibility=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.divisibility = divisibility
        self._out_features = [f"p{i}" for i in range(num_levels)]
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)
        self._out_feature_strides = {name: 2**i for i, name in enumerate(self._out_features)}

    def forward(self, x):
        maps = [self.conv(x)]
        for _ in self._out_features[1:]:
            maps.append(F.max_pool2d(maps[-1], 1, 2))
        return dict(zip(self._out_features, maps, strict=True))

    @property
    def size_divisibility(self):
        return self.divisibility

    @property
    def padding_constraints(self):
        return {"square_size": 0}


def block_of(channels=16, std=0.3, **options):
    """A block in float64 whose weights are large enough for offsets of a pixel and more."""
    block = DyHeadBlock(in_channels=channels, channels=channels, norm_groups=4, **options).double()
    for name, parameter in block.named_parameters():
        nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=std)
    return block


def maps(channels=16, sizes=SIZES, num_images=2):
    return [torch.randn(num_images, channels, *size, dtype=torch.float64) for size in sizes]


# --------------------------------------------------------------------- mmdetection's numbers


def test_two_blocks_of_mmdetection():
    found = [torch.from_numpy(published[f"feat_{level}"]) for level in range(5)]
    for index, name in ((0, "block0"), (1, "out")):
        prefix = f"dyhead.sd.neck.1.dyhead_blocks.{index}."
        block = DyHeadBlock(in_channels=32, channels=32, offsets_of_upper_level="flattened")
        weights = {}
        for key, value in published.items():
            if key.startswith(prefix):
                part, _, parameter = key.removeprefix(prefix).rpartition(".")
                weights[f"{PARTS[part]}.{parameter}"] = torch.from_numpy(value)
        block.load_state_dict(weights)
        with torch.no_grad():
            found = block(found)
        for level, x in enumerate(found):
            expected = torch.from_numpy(published[f"dyhead.{name}_{level}"])
            torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------- slow versions


def at(x, row, column):
    """x (H, W) at a position between its cells, 0 outside."""
    top, left = math.floor(row), math.floor(column)
    total = 0.0
    for i in (top, top + 1):
        for j in (left, left + 1):
            if 0 <= i < len(x) and 0 <= j < len(x[0]):
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * x[i][j]
    return total


def deformable(x, offset, mask, weight, stride):
    """x (C, H, W) at 9 points around every position of offset (18, H, W), "Deformable ConvNets"."""
    height, width = len(offset[0]), len(offset[0][0])
    out = [[[0.0] * width for _ in range(height)] for _ in weight]
    for row in range(height):
        for column in range(width):
            for point in range(9):
                y = row * stride + point // 3 - 1 + offset[2 * point][row][column]
                x_ = column * stride + point % 3 - 1 + offset[2 * point + 1][row][column]
                for c, channel in enumerate(x):
                    value = at(channel, y, x_) * mask[point][row][column]
                    for k, kernel in enumerate(weight):
                        out[k][row][column] += kernel[c][point // 3][point % 3] * value
    return torch.tensor(out, dtype=torch.float64)


def stretched(x, height, width):
    """x (C, h, w) on a grid of another size, corner on corner."""
    rows = [i * (x.shape[1] - 1) / max(height - 1, 1) for i in range(height)]
    columns = [j * (x.shape[2] - 1) / max(width - 1, 1) for j in range(width)]
    values = [[[at(c, i, j) for j in columns] for i in rows] for c in x.tolist()]
    return torch.tensor(values, dtype=torch.float64)


def read_as_smaller(x, height, width):
    """The first values of x (C, H, W), as read by an operator that expects another size."""
    values = [value for channel in x.tolist() for row in channel for value in row]
    return [
        [[values[(c * height + i) * width + j] for j in range(width)] for i in range(height)]
        for c in range(len(x))
    ]


def slow_level(block, features, level, *, flattened):
    """What a block makes of a level of one image (C, H, W)."""
    feature = features[level]
    height, width = feature.shape[1:]
    prediction = block.offset(feature[None])[0]
    offset, mask = prediction[:18], prediction[18:].sigmoid()

    def convolved(conv, x, offset, mask, stride=1):
        values = [v if isinstance(v, list) else v.tolist() for v in (x, offset, mask, conv.weight)]
        return conv.norm(deformable(*values, stride)[None])[0]

    parts = [convolved(block.same, feature, offset, mask)]
    if level > 0:
        parts.append(convolved(block.lower, features[level - 1], offset, mask, 2))
    if level + 1 < len(features):
        upper = features[level + 1]
        if flattened:
            size = upper.shape[1:]
            read = (read_as_smaller(x, *size) for x in (offset, mask))
            parts.append(stretched(convolved(block.upper, upper, *read), height, width))
        else:
            parts.append(convolved(block.upper, stretched(upper, height, width), offset, mask))
    mixed = 0
    for part in parts:
        weight = block.level_weight.weight[0, :, 0, 0] @ part.mean(dim=(1, 2))
        weight = max(weight + block.level_weight.bias[0], 0)
        mixed = mixed + part * min(weight + 3, 6) / 6 / len(parts)
    return slow_dyrelu(block.activation, mixed)


def slow_dyrelu(activation, x):
    channels = len(x)
    squeezed = [
        max(row @ x.mean(dim=(1, 2)) + bias, 0)
        for row, bias in zip(activation.squeeze.weight[:, :, 0, 0], activation.squeeze.bias)
    ]
    theta = [
        min(max(sum(w * s for w, s in zip(row, squeezed)) + bias + 3, 0), 6) / 6 - 0.5
        for row, bias in zip(activation.expand.weight[:, :, 0, 0], activation.expand.bias)
    ]
    a1, b1, a2, b2 = (theta[i * channels : (i + 1) * channels] for i in range(4))
    return torch.stack(
        [
            torch.maximum((2 * a1[c] + 1) * x[c] + b1[c], 2 * a2[c] * x[c] + b2[c])
            for c in range(channels)
        ]
    )


@torch.no_grad()
@pytest.mark.parametrize("reading", ["resize", "flattened"])
def test_a_loop_gives_the_same(reading):
    """First, middle and last level, of odd sizes; the offsets of an image are its own."""
    torch.manual_seed(0)
    block = block_of(4, offsets_of_upper_level=reading)
    features = maps(4)
    found = block(features)
    assert block.offset(features[0])[:, :18].abs().mean() > 0.5
    for image in range(2):
        for level in range(3):
            of_image = [x[image] for x in features]
            expected = slow_level(block, of_image, level, flattened=reading == "flattened")
            torch.testing.assert_close(found[level][image], expected, rtol=1e-9, atol=1e-9)


def test_the_two_readings_differ_only_by_offsets():
    """Their offsets are zero at first, if asked for: the masks 0.5, whichever are read."""
    blocks = [
        DyHeadBlock(channels=16, in_channels=16, offsets_of_upper_level=x, zero_init_offsets=True)
        for x in ("resize", "flattened")
    ]
    blocks[1].load_state_dict(blocks[0].state_dict())
    features = [x.float() for x in maps()]
    prediction = blocks[0].offset(features[0])
    assert prediction.abs().max() == 0
    last = [block([features[-1]])[0] for block in blocks]  # which has no upper level
    assert torch.equal(*last)
    flattened = blocks[1](features)[0]
    plain = F.conv2d(features[1], blocks[0].upper.weight / 2, padding=1)
    upper = F.interpolate(
        blocks[0].upper.norm(plain), size=SIZES[0], mode="bilinear", align_corners=True
    )
    same = blocks[0].same.norm(F.conv2d(features[0], blocks[0].same.weight / 2, padding=1))
    expected = blocks[0].activation((blocks[0]._weighted(same) + blocks[0]._weighted(upper)) / 2)
    torch.testing.assert_close(flattened, expected, rtol=1e-4, atol=1e-5)


def test_dyrelu_is_a_relu_at_first():
    activation = DyReLU(8)
    for parameter in activation.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(activation(x), x.relu())


# ------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("reading", ["resize", "flattened"])
def test_gradients(reading):
    torch.manual_seed(1)
    block = block_of(4, std=0.2, offsets_of_upper_level=reading)
    features = [x.requires_grad_() for x in maps(4, [(3, 2), (2, 1)], num_images=1)]
    assert torch.autograd.gradcheck(lambda *x: tuple(block(list(x))), features, eps=1e-7)


@pytest.mark.parametrize("reading", ["resize", "flattened"])
@pytest.mark.parametrize("size", [1e4, 1e-4, 0.0])
def test_gradients_are_finite(reading, size):
    block = DyHeadBlock(in_channels=16, channels=16, offsets_of_upper_level=reading)
    features = [(x.float() * size).requires_grad_() for x in maps()]
    sum(x.sum() for x in block(features)).backward()
    for tensor in (*features, *block.parameters()):
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("reading", ["resize", "flattened"])
def test_every_parameter_trains(reading):
    torch.manual_seed(0)  # with other weights, a ReLU may be closed
    block = block_of(offsets_of_upper_level=reading)
    sum((x**2).sum() for x in block(maps())).backward()
    assert [name for name, p in block.named_parameters() if p.grad.abs().max() == 0] == []


def test_bfloat16():
    torch.manual_seed(0)
    block = DyHeadBlock(in_channels=16, channels=16)
    features = [x.float() for x in maps(sizes=[(16, 12), (8, 6), (4, 3)])]
    expected = block(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(features)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x.float(), y, rtol=0.1, atol=0.1)
    sum(x.float().sum() for x in found).backward()
    assert block.offset.weight.grad.isfinite().all()
    half = block.to(torch.bfloat16)([x.bfloat16() for x in features])
    torch.testing.assert_close(half[0].float(), expected[0], rtol=0.1, atol=0.1)


# -------------------------------------------------------------------------------- the backbone


def test_it_is_a_backbone():
    model = DyHead(backbone=Pyramid(), channels=32, num_blocks=2)
    found = model(torch.randn(1, 3, 12, 8))
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "p0": (1, 32, 12, 8),
        "p1": (1, 32, 6, 4),
        "p2": (1, 32, 3, 2),
    }
    assert model.output_shape() == {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(3)}
    assert model.size_divisibility == 4
    assert model.padding_constraints == {"square_size": 0}
    model = DyHead(backbone=Pyramid(), in_features=["p1", "p2"], channels=16, size_divisibility=8)
    assert list(model(torch.randn(1, 3, 8, 8))) == ["p1", "p2"] == list(model.output_shape())
    assert model.size_divisibility == 8
    assert model.padding_constraints == {"square_size": 0, "size_divisibility": 8}


def test_initialization():
    torch.manual_seed(0)
    block = DyHead(backbone=Pyramid(channels=64), channels=64, num_blocks=1).blocks[0]
    for name, parameter in block.named_parameters():
        if parameter.dim() == 4:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.3), name
        else:
            assert parameter.unique().tolist() == [float(name.endswith("norm.weight"))], name
    assert block.upper.norm.num_groups == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_features": ["p1", "p7"]}, "in_features must be among p0, p1, p2, .*'p7'"),
        ({"in_features": []}, r"in_features must be among .* got \[\]"),
        ({"in_features": ["p0", "p2"]}, r"have strides \[1, 4\]"),
        ({"num_blocks": 0}, "num_blocks must be >= 1, got 0"),
        ({"channels": 24}, "channels=24 cannot be divided into norm_groups=16"),
        ({"size_divisibility": 6}, "size_divisibility=6 must be a multiple of the backbone's, 4"),
        (
            {"offsets_of_upper_level": "flat"},
            'offsets_of_upper_level must be one of resize, flattened, got "flat"',
        ),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DyHead(**{"backbone": Pyramid(), "channels": 16, **options})


def test_levels_of_different_channels():
    backbone = Pyramid()
    backbone._out_feature_channels["p1"] = 8
    with pytest.raises(ValueError, match=r"same number of channels, got \[16, 8, 16\]"):
        DyHead(backbone=backbone, channels=16)


# ------------------------------------------------------------------------------------ the head


def test_the_head_has_predictors_of_one_cell():
    shapes = [ShapeSpec(channels=16)] * 2
    head = ATSSHead(input_shape=shapes, num_classes=3, conv_dims=[], pred_kernel_size=1)
    assert head.cls_score.weight.shape == (3, 16, 1, 1)
    assert head.bbox_pred.weight.shape == (4, 16, 1, 1)
    assert head.ctrness.weight.shape == (1, 16, 1, 1)
    logits, _, _ = head([torch.randn(1, 16, 4, 5), torch.randn(1, 16, 2, 3)])
    assert [x.shape[2:] for x in logits] == [(4, 5), (2, 3)]
    with pytest.raises(ValueError, match="pred_kernel_size must be an odd number, got 2"):
        ATSSHead(input_shape=shapes, num_classes=3, pred_kernel_size=2)
