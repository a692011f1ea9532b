"""Swin's attention without a branch on the size of its input, for exporters.

torchvision's attention does not shift windows along a direction in which only one window fits. A
graph keeps the branch taken for one image, and would be wrong for images of other sizes.

Shapes: N images, Hp x Wp padded cells, h x w cells per window, P = h x w, B windows per image, A
heads of C / A channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


def use_any_size_attention(model: nn.Module) -> None:
    """Replaces the attention of torchvision's Swin transformers by an exportable equivalent.

    Args:
        model: A model in evaluation mode; changed in place, so pass a copy. It keeps its
            parameters.
    """
    for module in model.modules():
        if type(module) in _ANY_SIZE:
            module.__class__ = _ANY_SIZE[type(module)]


class _AnySize:
    """Attention within windows, for inference; mixed into torchvision's modules."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, H, W, C) to (N, H, W, C)."""
        height, width = x.shape[1:3]
        (h, w), channels = self.window_size, x.shape[3]
        is_shifted = any(shift > 0 for shift in self.shift_size)
        num_rows, num_columns = (height + h - 1) // h, (width + w - 1) // w  # of windows
        x = F.pad(x, (0, 0, 0, num_columns * w - width, 0, num_rows * h - height))
        if is_shifted:
            rows = _Shifted(num_rows, h, self.shift_size[0], x.device)
            columns = _Shifted(num_columns, w, self.shift_size[1], x.device)
            x = x[:, rows.sources][:, :, columns.sources]
        x = _to_windows(x, h, w)  # (N, B, P, C)

        qkv_bias = self.qkv.bias
        logit_scale = getattr(self, "logit_scale", None)
        if logit_scale is not None and qkv_bias is not None:  # version 2: keys have no bias
            qkv_bias = torch.stack((qkv_bias[:channels], qkv_bias[:channels], qkv_bias[-channels:]))
            qkv_bias = (qkv_bias * qkv_bias.new_tensor([[1], [0], [1]])).flatten()
        qkv = F.linear(x, self.qkv.weight, qkv_bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind()  # each (N, B, A, P, C / A)
        if logit_scale is None:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        else:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * logit_scale.clamp(max=math.log(100)).exp()
        scores = scores + self.get_relative_position_bias()  # (N, B, A, P, P)
        if is_shifted:
            # Cells that were not neighbors before the shift do not attend to each other.
            regions = (3 * rows.regions[:, None] + columns.regions)[None, :, :, None]
            regions = _to_windows(regions, h, w)[0, :, :, 0]  # (B, P)
            is_apart = (regions[:, :, None] != regions[:, None])[:, None]
            scores = torch.where(is_apart, scores - 100, scores)
        x = (scores.softmax(dim=-1) @ v).transpose(2, 3).flatten(3)
        x = self.proj(x)

        x = x.unflatten(2, (h, w)).unflatten(1, (num_rows, num_columns))
        x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)  # (N, Hp, Wp, C)
        if is_shifted:
            x = x[:, rows.targets][:, :, columns.targets]
        return x[:, :height, :width]


class _AnySizeAttention(_AnySize, ShiftedWindowAttention):
    pass


class _AnySizeAttentionV2(_AnySize, ShiftedWindowAttentionV2):
    pass


_ANY_SIZE = {
    ShiftedWindowAttention: _AnySizeAttention,
    ShiftedWindowAttentionV2: _AnySizeAttentionV2,
}


class _Shifted:
    """Cells along one direction, shifted cyclically if there is more than one window."""

    def __init__(self, num_windows: int, size: int, shift: int, device: torch.device) -> None:
        cells = torch.arange(num_windows * size, device=device)
        length = cells[-1] + 1  # not len(), which exporters would turn into a constant
        shift = torch.where(length > size, shift, 0)
        self.sources = (cells + shift) % length
        self.targets = (cells + length - shift) % length
        # Region 0: all windows but the last; 1 and 2: the parts of the last one before and after
        # the wrap-around.
        in_last = cells >= length - size
        self.regions = in_last.long() + (cells >= length - shift)


def _to_windows(x: Tensor, h: int, w: int) -> Tensor:
    """Maps (N, Hp, Wp, C) to (N, B, P, C)."""
    x = x.unflatten(2, (-1, w)).unflatten(1, (-1, h))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
