"""ResNet and ResNeXt with FPN P3-P7, as ATSS uses them: P6 from P5, deformable convolutions.

For LazyConfig::

    backbone = L(build_fpn_with_p6p7)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(make_resnet_stages)(depth=50, norm="FrozenBN"),
            out_features=["res3", "res4", "res5"],
            freeze_at=2,
        ),
    )

and for yaml ``MODEL.BACKBONE.NAME: build_atss_resnet_fpn_backbone``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor

from .deform_conv import DeformBottleneckBlock

__all__ = [
    "LastLevelP6P7",
    "LastLevelP6P7WithoutReLU",
    "build_atss_resnet_fpn_backbone",
    "build_fpn_with_p6p7",
    "make_resnet_stages",
]

# Blocks in res2, res3, res4 and res5.
_BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def make_resnet_stages(
    *,
    depth: int = 50,
    num_groups: int = 1,
    width_per_group: int = 64,
    norm: str = "FrozenBN",
    stride_in_1x1: bool = True,
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_modulated: bool = True,
    deform_num_groups: int = 1,
    res5_dilation: int = 1,
    stem_out_channels: int = 64,
    res2_out_channels: int = 256,
) -> list[list[CNNBlockBase]]:
    """Makes the stages res2 ... res5 of a ResNet or ResNeXt for Detectron2's ``ResNet``.

    Unlike ``ResNet.make_default_stages``, it supports ResNeXt's widths and deformable convolutions;
    the arguments are Detectron2's ``MODEL.RESNETS`` keys. ResNeXt-101 32x8d is
    ``depth=101, num_groups=32, width_per_group=8, stride_in_1x1=False``. Depths 18 and 34 consist
    of basic blocks, which ignore ``width_per_group`` and ``stride_in_1x1``.

    Args:
        depth: 18, 34, 50, 101 or 152.
        num_groups: Groups of the 3x3 convolutions; more than 1 makes a ResNeXt.
        width_per_group: Channels of one group in res2, doubled in every further stage.
        norm: See ``detectron2.layers.get_norm``.
        stride_in_1x1: Whether a bottleneck has its stride in the first 1x1 convolution (MSRA's
            ResNet weights) or in the 3x3 convolution (torchvision's, and ResNeXt).
        deform_on_per_stage: For each of res2 ... res5, whether its 3x3 convolutions are deformable.
        deform_modulated: Whether deformable convolutions have masks (v2).
        deform_num_groups: Number of deformable groups.
        res5_dilation: 2 keeps res5 at stride 16 with dilated convolutions.
        stem_out_channels: Channels that res2 receives.
        res2_out_channels: Channels of res2, doubled in every further stage; 64 for depth 18 and 34.

    Returns:
        Four lists of blocks, for ``ResNet(stages=...)``.

    Raises:
        ValueError: The depth is unknown, or does not support another argument.
    """
    if depth not in _BLOCKS_PER_STAGE:
        raise ValueError(f"depth must be one of {list(_BLOCKS_PER_STAGE)}, got {depth}")
    if res5_dilation not in (1, 2):
        raise ValueError(f"res5_dilation must be 1 or 2, got {res5_dilation}")
    if len(deform_on_per_stage) != 4:
        raise ValueError(
            "deform_on_per_stage needs one value for each of res2, res3, res4 and res5, got "
            f"{list(deform_on_per_stage)}"
        )
    basic = depth < 50
    if basic:
        _check_basic_blocks(
            depth, num_groups, deform_on_per_stage, res5_dilation, res2_out_channels
        )

    stages = []
    in_channels = stem_out_channels
    for index, (num_blocks, deform) in enumerate(
        zip(_BLOCKS_PER_STAGE[depth], deform_on_per_stage, strict=True)
    ):
        is_res5 = index == 3
        first_stride = 1 if index == 0 or (is_res5 and res5_dilation == 2) else 2
        out_channels = res2_out_channels * 2**index
        block_class, kwargs = BasicBlock, {}
        if not basic:
            block_class = BottleneckBlock
            kwargs = {
                "bottleneck_channels": num_groups * width_per_group * 2**index,
                "num_groups": num_groups,
                "stride_in_1x1": stride_in_1x1,
                "dilation": res5_dilation if is_res5 else 1,
            }
        if deform:
            block_class = DeformBottleneckBlock
            kwargs.update(deform_modulated=deform_modulated, deform_num_groups=deform_num_groups)
        stages.append(
            ResNet.make_stage(
                block_class,
                num_blocks,
                in_channels=in_channels,
                out_channels=out_channels,
                stride_per_block=[first_stride] + [1] * (num_blocks - 1),
                norm=norm,
                **kwargs,
            )
        )
        in_channels = out_channels
    return stages


def _check_basic_blocks(
    depth: int,
    num_groups: int,
    deform_on_per_stage: Sequence[bool],
    res5_dilation: int,
    res2_out_channels: int,
) -> None:
    """Checks that ResNet-18 or 34, whose blocks are basic, has no groups, dilation or DCN."""
    if any(deform_on_per_stage):
        raise ValueError(
            f"deform_on_per_stage={list(deform_on_per_stage)} needs bottleneck blocks, which a "
            f"ResNet of depth {depth} does not have; set all to False or depth to 50 or more"
        )
    for name, value, needed in (
        ("num_groups", num_groups, 1),
        ("res5_dilation", res5_dilation, 1),
        ("res2_out_channels", res2_out_channels, 64),
    ):
        if value != needed:
            raise ValueError(f"a ResNet of depth {depth} needs {name}={needed}, got {value}")


def build_fpn_with_p6p7(
    bottom_up: Backbone,
    *,
    in_features: Sequence[str] = ("res3", "res4", "res5"),
    out_channels: int = 256,
    norm: str = "",
    fuse_type: str = "sum",
    p7_relu: bool = True,
) -> FPN:
    """Builds Detectron2's FPN with two extra levels made from the FPN's own last output.

    RetinaNet makes P6 from C5; ATSS, like FCOS, makes it from P5.

    Args:
        bottom_up: Network that returns the features.
        in_features: Names of consecutive features of ``bottom_up``, finest first.
        out_channels: Channels of every pyramid level.
        norm: Norm of the lateral and output convolutions, see ``detectron2.layers.get_norm``.
        fuse_type: How lateral and top-down features are joined, ``"sum"`` or ``"avg"``.
        p7_relu: Whether P7 is a convolution of ReLU(P6), or of P6 itself, as in mmdetection.

    Raises:
        ValueError: ``in_features`` is empty or names a feature that ``bottom_up`` does not return.
    """
    shapes = bottom_up.output_shape()
    missing = [feature for feature in in_features if feature not in shapes]
    if missing or not in_features:
        raise ValueError(
            f"FPN in_features must be among {', '.join(shapes)}, which the bottom-up network "
            f"returns; got {list(in_features)}"
        )
    last_level = f"p{int(math.log2(shapes[in_features[-1]].stride))}"
    top_block = LastLevelP6P7 if p7_relu else LastLevelP6P7WithoutReLU
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=out_channels,
        norm=norm,
        top_block=top_block(out_channels, out_channels, in_feature=last_level),
        fuse_type=fuse_type,
    )


class LastLevelP6P7WithoutReLU(LastLevelP6P7):
    """Two successive convolutions, without a ReLU between them."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps P5 (N, C, H, W) to P6 and P7, each half the size of the previous level."""
        p6 = self.p6(x)
        return [p6, self.p7(p6)]


def fpn_options(cfg: CfgNode) -> dict:
    """Reads the arguments of :func:`build_fpn_with_p6p7` without a Detectron2 key.

    They are in ``MODEL.ATSS.FPN``. Empty for a cfg without our keys, which may also use our
    backbones.
    """
    return {"p7_relu": cfg.MODEL.ATSS.FPN.P7_RELU} if "ATSS" in cfg.MODEL else {}


@BACKBONE_REGISTRY.register()
def build_atss_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Builds a ResNet or ResNeXt with FPN and two extra levels, P6 and P7 from P5.

    Reads the keys that Detectron2's ``build_retinanet_resnet_fpn_backbone`` reads:
    ``MODEL.RESNETS.*``, ``MODEL.BACKBONE.FREEZE_AT`` and ``MODEL.FPN.*``; and ``MODEL.ATSS.FPN.*``.
    """
    resnets = cfg.MODEL.RESNETS
    bottom_up = ResNet(
        BasicStem(
            in_channels=input_shape.channels,
            out_channels=resnets.STEM_OUT_CHANNELS,
            norm=resnets.NORM,
        ),
        make_resnet_stages(
            depth=resnets.DEPTH,
            num_groups=resnets.NUM_GROUPS,
            width_per_group=resnets.WIDTH_PER_GROUP,
            norm=resnets.NORM,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
            deform_on_per_stage=resnets.DEFORM_ON_PER_STAGE,
            deform_modulated=resnets.DEFORM_MODULATED,
            deform_num_groups=resnets.DEFORM_NUM_GROUPS,
            res5_dilation=resnets.RES5_DILATION,
            stem_out_channels=resnets.STEM_OUT_CHANNELS,
            res2_out_channels=resnets.RES2_OUT_CHANNELS,
        ),
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    return build_fpn_with_p6p7(
        bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        **fpn_options(cfg),
    )
