"""Checkpoints as the authors' release and mmdetection write them, with random numbers.

Names and shapes are written out here from a description of the files; nothing of the package is
used. Statistics of norms are such that a signal neither dies nor explodes in fifty layers.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import torch
from torch import Tensor

R_50 = (3, 4, 6, 3)
R_101 = (3, 4, 23, 3)
NO_DCN = (False, False, False, False)


@contextlib.contextmanager
def mmengine() -> Iterator[types.ModuleType]:
    """A module of mmengine with three classes, there while a file is written and not afterwards."""
    name = "mmengine.logging.history_buffer"
    packages = [name.rsplit(".", i)[0] for i in range(3)]

    class HistoryBuffer:
        def __init__(self, values: Sequence[float]) -> None:
            self._log_history = np.array(values)
            self._count_history = np.ones(len(values), dtype=np.int64)
            self._statistics_methods = {"mean": HistoryBuffer.mean}

        def mean(self) -> float:
            return self._log_history.mean()

    class Level(list):
        pass

    class Settings(dict):
        pass

    with mock.patch.dict(sys.modules, {x: types.ModuleType(x) for x in packages}):
        module = sys.modules[name]
        for cls in (HistoryBuffer, Level, Settings):
            cls.__module__, cls.__qualname__ = name, cls.__name__
            setattr(module, cls.__name__, cls)
        HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
        HistoryBuffer.mean.__module__ = name
        yield module


class Weights(dict):
    """A state dict that grows, on a device: on meta it is only names and shapes."""

    def __init__(self, seed: int, device: str) -> None:
        super().__init__()
        self._device = device
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, key: str, *shape: int, mean: float = 0.0, std: float = 1.0) -> None:
        if self._device == "meta":
            self[key] = torch.empty(shape, device="meta")
        else:
            self[key] = mean + std * torch.randn(shape, generator=self._generator)

    def uniform(self, key: str, *shape: int, low: float, high: float) -> None:
        self.normal(key, *shape)
        if self._device != "meta":
            self[key] = low + (high - low) * torch.rand(shape, generator=self._generator)

    def conv(
        self, name: str, out_channels: int, in_channels: int, side: int = 1, *, bias: bool = False
    ) -> None:
        std = (2 / (in_channels * side * side)) ** 0.5
        self.normal(f"{name}.weight", out_channels, in_channels, side, side, std=std)
        if bias:
            self.normal(f"{name}.bias", out_channels, std=0.1)

    def offset_conv(self, name: str, in_channels: int, channels: int = 27) -> None:
        """Small offsets: sampling far away makes a deep network chaotic."""
        self.normal(f"{name}.weight", channels, in_channels, 3, 3, std=0.003)
        self.normal(f"{name}.bias", channels, std=0.2)

    def batch_norm(self, name: str, channels: int, *, scale: float = 1.0, counts: bool) -> None:
        """Its variances are small, so that an epsilon of 1e-5 is seen."""
        self.uniform(f"{name}.running_var", channels, low=2e-4, high=8e-4)
        self.normal(f"{name}.running_mean", channels, std=0.01)
        # Inputs of variance 1 are scaled as if the variance of the norm was 1.
        self.uniform(f"{name}.weight", channels, low=0.016 * scale, high=0.028 * scale)
        self.normal(f"{name}.bias", channels, std=0.1)
        if counts:
            self[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def group_norm(self, name: str, channels: int) -> None:
        self.uniform(f"{name}.weight", channels, low=0.5, high=1.5)
        self.normal(f"{name}.bias", channels, std=0.1)


def _stages(
    weights: Weights,
    prefix: str,
    blocks: Sequence[int],
    groups: int,
    width: int,
    dcn: Sequence[bool],
    names_of_dcn: tuple[str, str],
    counts: bool,
) -> None:
    """layer1 ... layer4 under torchvision's names, but for deformable convolutions."""
    in_channels = 64
    for stage, count in enumerate(blocks):
        inner, out_channels = groups * width * 2**stage, 256 * 2**stage
        for index in range(count):
            block = f"{prefix}layer{stage + 1}.{index}"
            if index == 0:
                weights.conv(f"{block}.downsample.0", out_channels, in_channels)
                weights.batch_norm(f"{block}.downsample.1", out_channels, counts=counts)
            weights.conv(f"{block}.conv1", inner, in_channels)
            weights.batch_norm(f"{block}.bn1", inner, counts=counts)
            if dcn[stage]:
                offset, conv = names_of_dcn
                weights.offset_conv(f"{block}.{offset}", inner)
                weights.conv(f"{block}.{conv}", inner, inner // groups, 3)
            else:
                weights.conv(f"{block}.conv2", inner, inner // groups, 3)
            weights.batch_norm(f"{block}.bn2", inner, counts=counts)
            weights.conv(f"{block}.conv3", out_channels, inner)
            weights.batch_norm(f"{block}.bn3", out_channels, scale=0.2, counts=counts)
            in_channels = out_channels


def authors(
    *,
    blocks: Sequence[int] = R_50,
    groups: int = 1,
    width: int = 64,
    dcn: Sequence[bool] = NO_DCN,
    dcn_in_tower: bool = False,
    num_classes: int = 80,
    channels: int = 256,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """The state dict of the authors' release."""
    weights = Weights(seed, device)
    weights.conv("backbone.body.stem.conv1", 64, 3, 7)
    weights.batch_norm("backbone.body.stem.bn1", 64, counts=False)
    names_of_dcn = ("conv2.offset", "conv2.conv")
    _stages(weights, "backbone.body.", blocks, groups, width, dcn, names_of_dcn, counts=False)
    for level, in_channels in ((2, 512), (3, 1024), (4, 2048)):
        weights.conv(f"backbone.fpn.fpn_inner{level}", channels, in_channels, bias=True)
        weights.conv(f"backbone.fpn.fpn_layer{level}", channels, channels, 3, bias=True)
    weights.conv("backbone.fpn.top_blocks.p6", channels, channels, 3, bias=True)
    weights.conv("backbone.fpn.top_blocks.p7", channels, channels, 3, bias=True)
    for tower in ("cls_tower", "bbox_tower"):
        for index in (0, 3, 6, 9):
            name = f"rpn.head.{tower}.{index}"
            if dcn_in_tower and index == 9:
                weights.offset_conv(f"{name}.offset", channels)
                weights.conv(f"{name}.conv", channels, channels, 3, bias=True)
            else:
                weights.conv(name, channels, channels, 3, bias=True)
            weights.group_norm(f"rpn.head.{tower}.{index + 1}", channels)
    for name, out_channels in (("cls_logits", num_classes), ("bbox_pred", 4), ("centerness", 1)):
        weights.conv(f"rpn.head.{name}", out_channels, channels, 3, bias=True)
    for level in range(5):
        weights.uniform(f"rpn.head.scales.{level}.scale", 1, low=0.5, high=1.5)
        weights.normal(f"rpn.anchor_generator.cell_anchors.{level}", 1, 4)
    return dict(weights)


def mmdet(
    *,
    blocks: Sequence[int] = R_50,
    groups: int = 1,
    width: int = 64,
    dcn: Sequence[bool] = NO_DCN,
    dcn_in_tower: bool = False,
    dcn_first_in_tower: bool = False,
    name_of_offset: str = "conv2.conv_offset",
    num_classes: int = 80,
    channels: int = 256,
    scale_shape: tuple[int, ...] = (),
    predictors: Sequence[tuple[str, int]] = (("atss_reg", 4), ("atss_centerness", 1)),
    class_predictor: str = "atss_cls",
    predictor_side: int = 3,
    tower_length: int = 4,
    dyhead_blocks: int = 0,
    shared_convs: int = 0,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """The state dict of mmdetection."""
    weights = Weights(seed, device)
    weights.conv("backbone.conv1", 64, 3, 7)
    weights.batch_norm("backbone.bn1", 64, counts=True)
    names_of_dcn = (name_of_offset, "conv2")
    _stages(weights, "backbone.", blocks, groups, width, dcn, names_of_dcn, counts=True)
    neck = "neck.0" if dyhead_blocks else "neck"
    for index, in_channels in enumerate((512, 1024, 2048)):
        weights.conv(f"{neck}.lateral_convs.{index}.conv", channels, in_channels, bias=True)
    for index in range(5):
        weights.conv(f"{neck}.fpn_convs.{index}.conv", channels, channels, 3, bias=True)
    for index in range(dyhead_blocks):
        _dyhead_block(weights, f"neck.1.dyhead_blocks.{index}", channels)
    for tower in ("cls_convs", "reg_convs"):
        for index in range(tower_length):
            name = f"bbox_head.{tower}.{index}"
            weights.conv(f"{name}.conv", channels, channels, 3)
            if dcn_in_tower and index == tower_length - 1:
                weights.offset_conv(f"{name}.conv.conv_offset", channels)
            elif dcn_first_in_tower and index == 0:
                weights.offset_conv(f"{name}.conv.conv_offset", channels, 18)
            weights.group_norm(f"{name}.gn", channels)
    for name, out_channels in ((class_predictor, num_classes), *predictors):
        weights.conv(f"bbox_head.{name}", out_channels, channels, predictor_side, bias=True)
    if shared_convs:
        _parts_of_tood(weights, shared_convs, channels)
    for level in range(5):
        weights.uniform(f"bbox_head.scales.{level}.scale", *scale_shape, low=0.5, high=1.5)
    return dict(weights)


def _parts_of_tood(weights: Weights, count: int, channels: int) -> None:
    for index in range(count):
        weights.conv(f"bbox_head.inter_convs.{index}.conv", channels, channels, 3)
        weights.group_norm(f"bbox_head.inter_convs.{index}.gn", channels)
    for part in ("cls_decomp", "reg_decomp"):
        name, hidden = f"bbox_head.{part}", channels // 8
        weights.conv(f"{name}.layer_attention.0", hidden, count * channels, bias=True)
        weights.conv(f"{name}.layer_attention.2", count, hidden, bias=True)
        weights.conv(f"{name}.reduction_conv.conv", channels, count * channels)
        weights.group_norm(f"{name}.reduction_conv.gn", channels)
    for part, out_channels in (("cls_prob_module", 1), ("reg_offset_module", 8)):
        name, hidden = f"bbox_head.{part}", channels // 4
        weights.conv(f"{name}.0", hidden, count * channels, bias=True)
        weights.conv(f"{name}.2", out_channels, hidden, 3, bias=True)


def _dyhead_block(weights: Weights, name: str, channels: int) -> None:
    for part in ("high", "mid", "low"):
        weights.conv(f"{name}.spatial_conv_{part}.conv", channels, channels, 3)
        weights.group_norm(f"{name}.spatial_conv_{part}.norm", channels)
    weights.offset_conv(f"{name}.spatial_conv_offset", channels)
    weights.conv(f"{name}.scale_attn_module.1", 1, channels, bias=True)
    weights.conv(f"{name}.task_attn_module.conv1.conv", channels // 4, channels, bias=True)
    weights.conv(f"{name}.task_attn_module.conv2.conv", 4 * channels, channels // 4, bias=True)
