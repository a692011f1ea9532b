"""Deformable convolution v1 and v2 with torchvision's operator, which runs on CPU and GPU.

Detectron2's own ``DeformConv`` and ``ModulatedDeformConv`` need its compiled extension. The modules
here have the same parameters and the same layout of offsets, so checkpoints are interchangeable.

Shapes: x (N, C, H, W); kernel of kh x kw = P points; G deformable groups, each with its own offsets
for C / G channels. Offsets are (N, G x P x 2, Ho, Wo), in pixels, (dy, dx) per point; masks are (N,
G x P, Ho, Wo). Modulated modules predict both with one convolution of G x P x 3 channels: the first
two thirds are the offsets, the last third the mask before its sigmoid.

Papers: "Deformable Convolutional Networks" (v1) and "Deformable ConvNets v2: More Deformable,
Better Results" (v2, modulated).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d

from . import flop_count  # noqa: F401  (makes fvcore count the operator)
from .precision import is_autocast_on, no_autocast, widen

__all__ = ["DeformBottleneckBlock", "DeformConv2d", "ModulatedDeformConvPack"]


class DeformConv2d(nn.Module):
    """Convolution that samples its input at given offsets, weighted by a mask if there is one.

    Replaces both ``detectron2.layers.DeformConv`` (v1, called without a mask) and
    ``detectron2.layers.ModulatedDeformConv`` (v2, called with one).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """
        Args:
            in_channels: C.
            out_channels: Channels of the output.
            kernel_size: Side of the kernel, or (kh, kw).
            stride: As in ``nn.Conv2d``.
            padding: As in ``nn.Conv2d``; samples outside the input are zero.
            dilation: As in ``nn.Conv2d``.
            groups: Groups of the convolution.
            deformable_groups: G; input channels of one group share their offsets.
            bias: Whether to add a learned bias.
            norm: Layer applied to the output.
            activation: Function applied after the norm.

        Raises:
            ValueError: The channels cannot be divided into the groups.
        """
        super().__init__()
        for what, channels, parts in (
            ("in_channels", in_channels, groups),
            ("out_channels", out_channels, groups),
            ("in_channels", in_channels, deformable_groups),
        ):
            if parts < 1 or channels % parts != 0:
                raise ValueError(f"{what}={channels} cannot be divided into {parts} groups")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.norm = norm
        self.activation = activation

        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        """Convolves the input at offset positions.

        Args:
            x: Input (N, C, H, W).
            offset: (N, G x P x 2, Ho, Wo), pixels.
            mask: (N, G x P, Ho, Wo), usually in 0 .. 1; None leaves the samples as they are.

        Returns:
            (N, out_channels, Ho, Wo), in the type that ``nn.Conv2d`` would return.

        Raises:
            ValueError: The channels of ``offset`` or ``mask`` do not fit the kernel and groups.
        """
        points = self.deformable_groups * self.kernel_size[0] * self.kernel_size[1]
        # torchvision would interpret other channels as another number of groups.
        num_masks = points if mask is None else mask.shape[1]
        if offset.shape[1] != 2 * points or num_masks != points:
            raise ValueError(
                f"a kernel of {self.kernel_size} with {self.deformable_groups} deformable groups "
                f"needs {2 * points} offset and {points} mask channels, got offset of shape "
                f"{list(offset.shape)} and {num_masks} mask channels"
            )
        x = _deform_conv2d_float32(
            x, offset, mask, self.weight, self.bias, self.stride, self.padding, self.dilation
        )
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"groups={self.groups}, deformable_groups={self.deformable_groups}, "
            f"bias={self.bias is not None}"
        )


class ModulatedDeformConvPack(nn.Module):
    """Deformable convolution that predicts its own offsets and mask from its input.

    Replaces an ``nn.Conv2d``: the last convolution of a detection tower. It has two parts,
    ``offset`` and ``conv``, named as in the authors' checkpoints. ``offset`` starts at zero, so
    that ``conv`` samples on the regular grid, with all masks at sigmoid(0) = 0.5.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        bias: bool = True,
        groups: int = 1,
        deform_groups: int = 1,
        modulated: bool = True,
    ) -> None:
        """
        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            kernel_size: Side of the kernel.
            stride: Stride of both parts.
            padding: Padding of both parts.
            dilation: Dilation of both parts.
            bias: Whether ``conv`` has a bias; ``offset`` always has one.
            groups: Groups of ``conv``.
            deform_groups: Deformable groups of ``conv``.
            modulated: Whether to predict masks too (v2) or only offsets (v1).
        """
        super().__init__()
        self.modulated = modulated
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        self.offset = _make_offset_conv(
            in_channels, kernel_size, deform_groups, modulated, **geometry
        )
        self.conv = DeformConv2d(
            in_channels,
            out_channels,
            kernel_size,
            groups=groups,
            deformable_groups=deform_groups,
            bias=bias,
            **geometry,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, Ho, Wo)."""
        offset, mask = _split_offset_and_mask(self.offset(x), self.modulated)
        return self.conv(x, offset, mask)


class DeformBottleneckBlock(BottleneckBlock):
    """Detectron2's bottleneck with a deformable 3x3 convolution that needs no compiled extension.

    Parameters are those of ``detectron2.modeling.backbone.resnet.DeformBottleneckBlock``, in the
    same order: ``shortcut``, ``conv1``, ``conv2_offset``, ``conv2``, ``conv3``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        **kwargs,
    ) -> None:
        """
        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            deform_modulated: Whether to use masks (v2).
            deform_num_groups: Deformable groups of the 3x3 convolution.
            kwargs: Arguments of Detectron2's ``BottleneckBlock``.
        """
        super().__init__(in_channels, out_channels, **kwargs)
        self.deform_modulated = deform_modulated
        plain, conv3 = self.conv2, self.conv3
        # Registered anew, so that an optimizer sees the parameters in Detectron2's order and the
        # optimizer state of its checkpoints fits.
        del self.conv2, self.conv3
        geometry = {"stride": plain.stride, "padding": plain.padding, "dilation": plain.dilation}
        self.conv2_offset = _make_offset_conv(
            plain.in_channels, plain.kernel_size, deform_num_groups, deform_modulated, **geometry
        )
        self.conv2 = DeformConv2d(
            plain.in_channels,
            plain.out_channels,
            plain.kernel_size,
            groups=plain.groups,
            deformable_groups=deform_num_groups,
            norm=plain.norm,
            **geometry,
        )
        self.conv2.weight = plain.weight
        self.conv3 = conv3

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = F.relu_(self.conv1(x))
        offset, mask = _split_offset_and_mask(self.conv2_offset(out), self.deform_modulated)
        out = F.relu_(self.conv2(out, offset, mask))
        out = self.conv3(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


def _make_offset_conv(
    in_channels: int,
    kernel_size: int | tuple[int, int],
    deform_groups: int,
    modulated: bool,
    **geometry,
) -> Conv2d:
    """Makes the convolution that predicts offsets (and masks), all zero at first."""
    points = _pair(kernel_size)[0] * _pair(kernel_size)[1]
    conv = Conv2d(
        in_channels, deform_groups * points * (3 if modulated else 2), kernel_size, **geometry
    )
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def _split_offset_and_mask(prediction: Tensor, modulated: bool) -> tuple[Tensor, Tensor | None]:
    """Splits the output of an offset convolution, see the top of this module."""
    if not modulated:
        return prediction, None
    num_offsets = prediction.shape[1] // 3 * 2
    return prediction[:, :num_offsets], widen(prediction[:, num_offsets:]).sigmoid()


def _deform_conv2d_float32(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Calls torchvision's operator in at least float32, with a plain convolution's output type.

    Sampling positions need float32 (bfloat16 has steps of one pixel from 128 px upwards), and the
    CPU has no half-precision kernel.
    """
    out_dtype = x.dtype
    if torch.jit.is_scripting():  # its compiler does not know autocast
        out = _widened_deform_conv2d(x, offset, mask, weight, bias, stride, padding, dilation)
    else:
        device = x.device.type
        if is_autocast_on(device) and x.dtype != torch.float64:  # it leaves double precision alone
            out_dtype = torch.get_autocast_dtype(device)
        with no_autocast(device):
            out = _widened_deform_conv2d(x, offset, mask, weight, bias, stride, padding, dilation)
    return out.to(out_dtype)


def _widened_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    far: float = 1e6,  # pixels; outside every map, where samples are zero
) -> Tensor:
    offset = widen(offset)
    # At a NaN, torchvision's CPU kernel would read arbitrary memory.
    positions = torch.where(offset.abs() < far, offset, far)
    out = deform_conv2d(
        widen(x),
        positions,
        widen(weight),
        None if bias is None else widen(bias),
        stride,
        padding,
        dilation,
        None if mask is None else widen(mask),
    )
    # NaN, forward and backward, where an offset is NaN or infinite; adds zero elsewhere.
    return out + (offset * 0).sum(dim=1, keepdim=True)
