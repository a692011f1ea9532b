"""DyHead: attention over levels, positions and channels, between a feature pyramid and a head.

"Dynamic Head: Unifying Object Detection Heads with Attentions" (arXiv 2106.08322). Any detector can
use it, as it is a backbone around a backbone::

    model.backbone = L(DyHead)(backbone=model.backbone, channels=256, num_blocks=6)
    model.head.update(conv_dims=[], pred_kernel_size=1)

Shapes: N images, L levels of size Hi x Wi, C channels. The *upper* level of one of size H x W is
the next coarser one, h x w; the *lower* level is the next finer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from torch import Tensor, nn

from .choices import check_choice
from .deform_conv import DeformConv2d
from .precision import widen

__all__ = ["DyHead", "DyHeadBlock", "DyReLU"]

_OFFSETS_OF_UPPER_LEVEL = ("resize", "flattened")


class DyReLU(nn.Module):
    """max(a1 x + b1, a2 x + b2), its four coefficients per channel computed from the whole map.

    The task-aware attention of DyHead (Eq. 5). With weights of zero it is a ReLU.
    """

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        """
        Args:
            channels: C.
            reduction: The coefficients are predicted from C / ``reduction`` values.
        """
        super().__init__()
        self.squeeze = nn.Conv2d(channels, max(channels // reduction, 1), kernel_size=1)
        self.expand = nn.Conv2d(self.squeeze.out_channels, 4 * channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, H, W)."""
        pooled = F.adaptive_avg_pool2d(x, 1)
        coefficients = F.hardsigmoid(self.expand(self.squeeze(pooled).relu())) - 0.5
        a1, b1, a2, b2 = coefficients.chunk(4, dim=1)  # each (N, C, 1, 1), -0.5 .. 0.5
        return torch.maximum((2 * a1 + 1) * x + b1, 2 * a2 * x + b2)


class DyHeadBlock(nn.Module):
    """One block of DyHead: every level is mixed with its neighbors.

    Offsets and masks are predicted from a level and used by three deformable convolutions: of the
    level itself, of the lower one (stride 2) and of the upper one. The mean of the three maps, each
    weighted by a scalar that is computed from it, passes through a :class:`DyReLU`. The finest and
    the coarsest level have one neighbor, a single level none.
    """

    def __init__(
        self,
        *,
        in_channels: int = 256,
        channels: int = 256,
        offsets_of_upper_level: str = "resize",
        zero_init_offsets: bool = False,
        norm_groups: int = 16,
    ) -> None:
        """
        Args:
            in_channels: Channels of the input.
            channels: C, channels of the output.
            offsets_of_upper_level: See :class:`DyHead`, as for the next two.
            zero_init_offsets: See there.
            norm_groups: See there.

        Raises:
            ValueError: ``offsets_of_upper_level`` is unknown, or the channels cannot be divided
                into the groups.
        """
        super().__init__()
        check_choice("offsets_of_upper_level", offsets_of_upper_level, _OFFSETS_OF_UPPER_LEVEL)
        if channels % norm_groups:
            raise ValueError(
                f"channels={channels} cannot be divided into norm_groups={norm_groups}"
            )
        self.reads_flattened = offsets_of_upper_level == "flattened"
        self.offset = nn.Conv2d(in_channels, 27, kernel_size=3, padding=1)
        self.same, self.lower, self.upper = (
            DeformConv2d(
                *(in_channels, channels, 3),
                stride=stride,
                padding=1,
                norm=nn.GroupNorm(norm_groups, channels),
            )
            for stride in (1, 2, 1)
        )
        self.level_weight = nn.Conv2d(channels, 1, kernel_size=1)
        self.activation = DyReLU(channels)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, DeformConv2d)):
                nn.init.normal_(module.weight, mean=0, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if zero_init_offsets:
            nn.init.zeros_(self.offset.weight)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps L maps (N, in_channels, Hi, Wi), finest first, to L maps (N, C, Hi, Wi)."""
        outputs: list[Tensor] = []
        for level, feature in enumerate(features):
            prediction = self.offset(feature)  # of 9 points: (dy, dx) each, then the masks
            offset, mask = prediction[:, :18], widen(prediction[:, 18:]).sigmoid()
            mixed = self._weighted(self.same(feature, offset, mask))
            count = 1
            if level > 0:
                mixed = mixed + self._weighted(self.lower(features[level - 1], offset, mask))
                count += 1
            if level + 1 < len(features):
                mixed = mixed + self._weighted(self._of_upper(features[level + 1], offset, mask))
                count += 1
            outputs.append(self.activation(mixed / count))
        return outputs

    def _of_upper(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """Maps the upper level (N, in_channels, h, w) to (N, C, H, W)."""
        size = offset.shape[-2:]
        if not self.reads_flattened:
            return self.upper(_resized(x, size), offset, mask)
        return _resized(self.upper(x, _first(offset, x), _first(mask, x)), size)

    def _weighted(self, x: Tensor) -> Tensor:
        """Multiplies a map by its weight, the scale-aware attention (Eq. 3)."""
        weight = self.level_weight(F.adaptive_avg_pool2d(x, 1)).relu()
        return x * F.hardsigmoid(weight)


class DyHead(Backbone):
    """A backbone whose feature pyramid passes through blocks of DyHead.

    The levels keep their names and strides.

    The offsets of a level have its size, but the upper level has half of it. The authors' operator
    does not notice, and reads the first values of the flattened offsets: those of some rows of the
    first channels, as if they were all channels of a smaller map (microsoft/DynamicHead issue 25).
    Their weights and mmdetection's were trained with this and need it: ``"flattened"``. With
    ``"resize"``, the upper level is resized before its convolution instead of afterwards: then
    every position has its own offset on the grid of its own level, as in the paper (Sec. 3.2), for
    more computation, as the convolution is of H x W instead of h x w positions.
    """

    # torch.jit.script need not compile them.
    __jit_unused_properties__ = ("size_divisibility", "padding_constraints")

    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str] | None = None,
        channels: int = 256,
        num_blocks: int = 6,
        offsets_of_upper_level: str = "resize",
        zero_init_offsets: bool = False,
        norm_groups: int = 16,
        size_divisibility: int | None = None,
    ) -> None:
        """
        Args:
            backbone: Returns the pyramid, usually an FPN.
            in_features: Names of levels of ``backbone`` to use, finest first, each of half the
                resolution of the previous one. Default: all. Others are not returned.
            channels: Channels of all levels that are returned.
            num_blocks: Number of blocks.
            offsets_of_upper_level: ``"resize"``, or ``"flattened"`` for the published weights, see
                above.
            zero_init_offsets: Whether offsets start at zero, as by default in mmdetection, instead
                of at random.
            norm_groups: Groups of the GroupNorm after each deformable convolution.
            size_divisibility: Images are padded to a multiple of this. Default: that of
                ``backbone``. With the stride of the coarsest level, as in the authors' release,
                each level is exactly half as large as the next finer one.

        Raises:
            ValueError: An argument is invalid, ``backbone`` does not return a feature, or the
                features do not fit together.
        """
        super().__init__()
        shapes = backbone.output_shape()
        names = sorted(shapes, key=lambda name: shapes[name].stride)
        names = names if in_features is None else list(in_features)
        missing = [name for name in names if name not in shapes]
        if missing or not names:
            raise ValueError(
                f"DyHead's in_features must be among {', '.join(shapes)}, which the backbone "
                f"returns; got {names}"
            )
        strides = [shapes[name].stride for name in names]
        if any(2 * fine != coarse for fine, coarse in pairwise(strides)):
            raise ValueError(
                "DyHead's in_features need strides of which each is twice the previous one, but "
                f"{names} have strides {strides}"
            )
        in_channels = {shapes[name].channels for name in names}
        if len(in_channels) != 1:
            raise ValueError(
                "DyHead's blocks are shared by all levels, which must have the same number of "
                f"channels, got {[shapes[name].channels for name in names]}"
            )
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be >= 1, got {num_blocks}")
        if size_divisibility is not None and size_divisibility % max(backbone.size_divisibility, 1):
            raise ValueError(
                f"size_divisibility={size_divisibility} must be a multiple of the backbone's, "
                f"{backbone.size_divisibility}"
            )
        self.backbone = backbone
        self.in_features = names
        self._out_features = names
        self._out_feature_channels = dict.fromkeys(names, channels)
        self._out_feature_strides = dict(zip(names, strides))
        self._size_divisibility = size_divisibility
        self.blocks = nn.ModuleList(
            DyHeadBlock(
                in_channels=channels if index else in_channels.pop(),
                channels=channels,
                offsets_of_upper_level=offsets_of_upper_level,
                zero_init_offsets=zero_init_offsets,
                norm_groups=norm_groups,
            )
            for index in range(num_blocks)
        )

    @property
    def size_divisibility(self) -> int:
        """What the height and width of images must be multiples of."""
        return self._size_divisibility or self.backbone.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Those of the backbone, with the own ``size_divisibility``."""
        constraints = dict(self.backbone.padding_constraints)
        if self._size_divisibility is not None:
            constraints["size_divisibility"] = self._size_divisibility
        return constraints

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps images (N, 3, H, W) to a dict of L maps (N, C, Hi, Wi)."""
        pyramid = self.backbone(x)
        maps = [pyramid[name] for name in self.in_features]
        for block in self.blocks:
            maps = block(maps)
        outputs: dict[str, Tensor] = {}
        for i, name in enumerate(self.in_features):
            outputs[name] = maps[i]
        return outputs


def _first(x: Tensor, smaller: Tensor) -> Tensor:
    """Reads x (N, K, H, W) as an operator that takes it for (N, K, h, w), which ``smaller`` is."""
    num_images, channels = x.shape[:2]
    height, width = smaller.shape[-2:]
    values = x.flatten(1)[:, : channels * height * width]
    return values.reshape(num_images, channels, height, width)


def _resized(x: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)
