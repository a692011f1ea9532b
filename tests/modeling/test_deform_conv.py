import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import get_norm
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from atss_d2.modeling.deform_conv import (
    DeformBottleneckBlock,
    DeformConv2d,
    ModulatedDeformConvPack,
)

try:
    from detectron2 import _C  # noqa: F401

    has_extension = True
except ImportError:
    has_extension = False
needs_extension = pytest.mark.skipif(
    not has_extension, reason="this Detectron2 has no compiled extension (detectron2._C)"
)


def _sample(image, y, x):
    """Bilinear value of an H x W list of numbers at one place; zero outside."""
    height, width = image.shape
    value = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * float(image[row, column])
    return value


@torch.no_grad()
def _reference(x, offset, mask, conv):
    """Deformable convolution as in Eq. 2 of DCN and Eq. 1 of DCNv2, one number at a time."""
    batch, channels = x.shape[:2]
    kernel_height, kernel_width = conv.kernel_size
    points = kernel_height * kernel_width
    height, width = offset.shape[-2:]
    channels_per_group = channels // conv.groups
    channels_per_offset = channels // conv.deformable_groups
    out_per_group = conv.out_channels // conv.groups
    out = torch.zeros(batch, conv.out_channels, height, width, dtype=x.dtype)
    for n, o, i, j in torch.cartesian_prod(*(torch.arange(s) for s in out.shape)).tolist():
        total = 0.0 if conv.bias is None else float(conv.bias[o])
        for c in range(channels_per_group):
            channel = (o // out_per_group) * channels_per_group + c
            group = channel // channels_per_offset
            for point in range(points):
                row, column = divmod(point, kernel_width)
                dy, dx = offset[n, (group * points + point) * 2 :][:2, i, j].tolist()
                y = i * conv.stride[0] - conv.padding[0] + row * conv.dilation[0] + dy
                x_ = j * conv.stride[1] - conv.padding[1] + column * conv.dilation[1] + dx
                value = _sample(x[n, channel], y, x_)
                if mask is not None:
                    value *= float(mask[n, group * points + point, i, j])
                total += value * float(conv.weight[o, c, row, column])
        out[n, o, i, j] = total
    return out


def _out_size(size, conv, axis):
    span = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
    return (size + 2 * conv.padding[axis] - span) // conv.stride[axis] + 1


def _random_case(modulated, dtype=torch.float64, size=(5, 6), batch=1, **kwargs):
    torch.manual_seed(0)
    kwargs = {"padding": 1, **kwargs}
    conv = DeformConv2d(4, 4, kwargs.pop("kernel_size", 3), **kwargs).to(dtype)
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
    out_size = [_out_size(side, conv, axis) for axis, side in enumerate(size)]
    points = conv.deformable_groups * conv.kernel_size[0] * conv.kernel_size[1]
    x = torch.randn(batch, 4, *size, dtype=dtype)
    offset = torch.randn(batch, 2 * points, *out_size, dtype=dtype) * 1.5
    mask = torch.rand(batch, points, *out_size, dtype=dtype) if modulated else None
    return conv, x, offset, mask


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"batch": 2, "bias": True},
        {"groups": 2},
        {"deformable_groups": 2},
        {"groups": 4, "deformable_groups": 2},
        {"stride": 2, "size": (6, 5)},
        {"dilation": 2, "padding": 2},
        {"kernel_size": (1, 3), "padding": (0, 1), "stride": (1, 2)},
    ],
    ids=str,
)
def test_equals_one_number_at_a_time(modulated, kwargs):
    conv, x, offset, mask = _random_case(modulated, **kwargs)
    expected = _reference(x, offset, mask, conv)
    torch.testing.assert_close(conv(x, offset, mask), expected)


def test_whole_offsets_shift_the_image_down_and_right():
    # 1x1 kernel of weight 1: the output is the input read at (i + dy, j + dx), dy comes first.
    conv = DeformConv2d(1, 1, 1)
    nn.init.ones_(conv.weight)
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    offset = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 4)
    expected = [[6.0, 7.0, 0.0, 0.0], [10.0, 11.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(conv(x, offset)[0, 0], torch.tensor(expected))


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"bias": False, "deform_groups": 2},
        {"kernel_size": 5, "padding": 2, "stride": 2, "groups": 2},
    ],
    ids=str,
)
def test_pack_starts_as_a_plain_convolution(modulated, kwargs):
    torch.manual_seed(0)
    pack = ModulatedDeformConvPack(4, 6, modulated=modulated, **kwargs)
    conv = pack.conv
    x = torch.randn(2, 4, 7, 8)
    geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
    plain = F.conv2d(x, conv.weight, None, *geometry)
    # Masks start at sigmoid(0) = 1/2.
    expected = plain * (0.5 if modulated else 1)
    if conv.bias is not None:
        nn.init.normal_(conv.bias)
        expected = expected + conv.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(pack(x), expected)


def test_pack_reads_offsets_from_the_first_and_the_mask_from_the_last_third():
    torch.manual_seed(0)
    pack = ModulatedDeformConvPack(4, 6, deform_groups=2)
    nn.init.normal_(pack.offset.weight, std=0.1)
    nn.init.normal_(pack.offset.bias)
    x = torch.randn(1, 4, 5, 6)
    prediction = pack.offset(x)  # 2 groups x 9 points x (2 offsets + 1 mask) = 54 channels
    expected = pack.conv(x, prediction[:, :36], prediction[:, 36:].sigmoid())
    torch.testing.assert_close(pack(x), expected)


@pytest.mark.parametrize("modulated", [False, True])
def test_gradients(modulated):
    conv, x, offset, mask = _random_case(
        modulated, size=(3, 4), groups=2, deformable_groups=2, bias=True
    )

    def function(x, offset, mask, weight, bias):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (x, offset, mask))

    inputs = [x, offset, mask, conv.weight.detach().clone(), conv.bias.detach().clone()]
    inputs = [None if tensor is None else tensor.requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("modulated", [False, True])
def test_batch_without_images(modulated):
    pack = ModulatedDeformConvPack(4, 6, stride=2, modulated=modulated)
    x = torch.zeros(0, 4, 9, 8, requires_grad=True)
    out = pack(x)
    assert out.shape == (0, 6, 5, 4)
    # Every parameter takes part, as DistributedDataParallel needs it.
    out.sum().backward()
    for parameter in pack.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter))


def test_autocast_computes_in_float32_and_returns_bfloat16():
    conv, x, offset, mask = _random_case(True, dtype=torch.float32, bias=True)
    expected = conv(x, offset, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x, offset, mask)
        assert out.dtype == F.conv2d(x, conv.weight).dtype == torch.bfloat16
    # Only the result was rounded.
    torch.testing.assert_close(out, expected.bfloat16(), rtol=0, atol=0)
    out.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32
    assert conv.weight.grad.abs().sum() > 0


def test_autocast_leaves_double_precision_alone():
    conv, x, offset, mask = _random_case(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x, offset, mask).dtype == F.conv2d(x, conv.weight).dtype == torch.float64


def test_half_precision_positions_far_from_the_origin():
    # At column 300 bfloat16 knows only every second pixel; positions are added in float32.
    pack = ModulatedDeformConvPack(1, 1, modulated=False, bias=False)
    x = torch.arange(320.0).fmod(7).reshape(1, 1, 1, 320)
    expected = pack(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = pack(x)
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)


def test_module_in_bfloat16():
    pack = ModulatedDeformConvPack(4, 6).bfloat16()
    assert pack(torch.randn(1, 4, 5, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_norm_and_activation_come_after_the_bias():
    torch.manual_seed(0)
    conv = DeformConv2d(4, 6, 3, padding=1, bias=True, norm=nn.GroupNorm(2, 6), activation=F.relu)
    assert sorted(conv.state_dict()) == ["bias", "norm.bias", "norm.weight", "weight"]
    nn.init.normal_(conv.bias)
    x = torch.randn(1, 4, 5, 5)
    expected = F.relu(conv.norm(F.conv2d(x, conv.weight, conv.bias, padding=1)))
    torch.testing.assert_close(conv(x, torch.zeros(1, 18, 5, 5)), expected)


@pytest.mark.parametrize(("offset_channels", "mask_channels"), [(18, 9), (36, 9), (35, 18)])
def test_wrong_offsets_are_refused(offset_channels, mask_channels):
    conv = DeformConv2d(4, 4, 3, padding=1, deformable_groups=2)
    offset, mask = torch.zeros(1, offset_channels, 5, 5), torch.zeros(1, mask_channels, 5, 5)
    with pytest.raises(
        ValueError, match="needs 36 offset and 18 mask channels, got offset of shape"
    ):
        conv(torch.zeros(1, 4, 5, 5), offset, mask)


@pytest.mark.parametrize("kwargs", [{"groups": 3}, {"deformable_groups": 3}])
def test_channels_that_cannot_be_grouped_are_refused(kwargs):
    with pytest.raises(ValueError, match="in_channels=4 cannot be divided into"):
        DeformConv2d(4, 6, 3, **kwargs)


BLOCK = {"bottleneck_channels": 8, "stride": 2, "stride_in_1x1": False, "norm": "FrozenBN"}
NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize(("stride_in_1x1", "dilation"), [(False, 2), (True, 1)])
def test_block_starts_as_the_plain_block(stride_in_1x1, dilation):
    torch.manual_seed(0)
    kwargs = {**BLOCK, "stride_in_1x1": stride_in_1x1, "dilation": dilation, "num_groups": 2}
    block = DeformBottleneckBlock(4, 16, deform_modulated=False, **kwargs)
    plain = BottleneckBlock(4, 16, **kwargs)
    missing, unexpected = plain.load_state_dict(block.state_dict(), strict=False)
    assert missing == []
    assert unexpected == ["conv2_offset.weight", "conv2_offset.bias"]
    x = torch.randn(2, 4, 9, 10)
    torch.testing.assert_close(block(x), plain(x))


def test_modulated_block_computes_the_documented_sum():
    torch.manual_seed(0)
    block = DeformBottleneckBlock(16, 16, deform_modulated=True, bottleneck_channels=8, norm="BN")
    assert block.shortcut is None
    nn.init.normal_(block.conv2_offset.weight, std=0.1)
    x = torch.randn(2, 16, 5, 6)
    inner = F.relu(block.conv1(x))
    prediction = block.conv2_offset(inner)
    inner = F.relu(block.conv2(inner, prediction[:, :18], prediction[:, 18:].sigmoid()))
    out = block(x.clone())
    torch.testing.assert_close(out, F.relu(block.conv3(inner) + x))
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    assert block.conv2_offset.weight.grad.abs().sum() > 0


@pytest.mark.gpu
@needs_extension
@pytest.mark.parametrize("modulated", [False, True])
def test_equals_detectron2s_operator(modulated):
    from detectron2.layers import DeformConv, ModulatedDeformConv

    # Without a GPU Detectron2 runs v1 only, with one deformable group.
    device, groups = ("cuda", 2) if torch.cuda.is_available() else ("cpu", 1)
    if modulated and device == "cpu":
        pytest.skip("Detectron2's ModulatedDeformConv needs a GPU")
    torch.manual_seed(0)
    kwargs = {"stride": 2, "padding": 1, "groups": 2, "deformable_groups": groups, "bias": False}
    cls = ModulatedDeformConv if modulated else DeformConv
    theirs = cls(8, 4, 3, norm=get_norm("BN", 4), activation=F.relu, **kwargs).to(device)
    ours = DeformConv2d(8, 4, 3, norm=get_norm("BN", 4), activation=F.relu, **kwargs).to(device)
    ours.load_state_dict(theirs.state_dict())
    inputs = [torch.randn(2, 8, 9, 10), torch.randn(2, 18 * groups, 5, 5)]
    if modulated:
        inputs.append(torch.rand(2, 9 * groups, 5, 5))
    inputs = [tensor.to(device) for tensor in inputs]
    torch.testing.assert_close(ours(*inputs), theirs(*inputs), rtol=1e-4, atol=1e-5)


@needs_extension
@pytest.mark.parametrize("modulated", [False, True])
def test_block_has_the_parameters_of_detectron2s_block(modulated):
    from detectron2.modeling.backbone.resnet import DeformBottleneckBlock as TheirBlock

    kwargs = {**BLOCK, "num_groups": 2, "deform_modulated": modulated, "deform_num_groups": 2}
    ours, theirs = DeformBottleneckBlock(4, 16, **kwargs), TheirBlock(4, 16, **kwargs)
    assert [(key, p.shape) for key, p in ours.named_parameters()] == [
        (key, p.shape) for key, p in theirs.named_parameters()
    ]
    ours.load_state_dict(theirs.state_dict())
