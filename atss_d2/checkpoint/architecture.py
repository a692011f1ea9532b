"""Infers which model weights in our names belong to: depth, widths, deformable layers, classes.

Only shapes are used. Missing and extra names are found afterwards, when the inferred model is
compared with the state dict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ..config import get_config, target_of
from ..config.arguments import arguments_of
from .conventions import apply_convention, config_value, convention_settings
from .foreign_names import without_dyhead
from .loading import CheckpointError
from .mmdet_heads import MMDET_HEADS

_RES = "backbone.bottom_up"
_POINTS = 9  # of a 3x3 kernel

# Blocks in res2 ... res5, and whether they are bottlenecks -> depth.
_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
# Groups, width of a group, depth, whether it has deformable convolutions -> the config to start
# from. Models that the authors did not release start from that of ResNet-50.
_CONFIGS = {
    (1, 64, 50, False): "coco/atss_R_50_FPN_1x",
    (1, 64, 50, True): "coco/atss_dcnv2_R_50_FPN_1x",
    (1, 64, 101, False): "coco/atss_R_101_FPN_2x",
    (1, 64, 101, True): "coco/atss_dcnv2_R_101_FPN_2x",
    (32, 8, 101, False): "coco/atss_X_101_32x8d_FPN_2x",
    (32, 8, 101, True): "coco/atss_dcnv2_X_101_32x8d_FPN_2x",
    (64, 4, 101, False): "coco/atss_X_101_64x4d_FPN_2x",
    (64, 4, 101, True): "coco/atss_dcnv2_X_101_64x4d_FPN_2x",
}


class ConfigChange(NamedTuple):
    """A config key below ``model``, its value there, and the value that the weights need."""

    key: str
    value: Any
    needed: Any


@dataclass(frozen=True)
class Architecture:
    """The model of a state dict: one of our configs, and the values that differ from it.

    Attributes:
        config: Name of the config to start from, for :func:`atss_d2.get_config`.
        settings: Keys below ``model`` whose values differ from that config, and the values.
        detector: Key of :data:`MMDET_HEADS`.
    """

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    detector: str = "atss"

    def config_with(self, convention: str) -> DictConfig:
        """Returns the config of the model under a convention."""
        cfg = get_config(self.config)
        for key, value in self.settings.items():
            if key.endswith("._target_"):  # without the arguments of the class it replaces
                key, value = key.removesuffix("._target_"), {"_target_": value}
            OmegaConf.update(cfg.model, key, value, merge=False)
        return apply_convention(cfg, convention)

    def changes(self, convention: str) -> list[ConfigChange]:
        """Returns the keys whose values differ from the base config, under a convention."""
        model = get_config(self.config).model
        needed = {**self.settings, **convention_settings(self.config_with(convention), convention)}
        changes = [ConfigChange(key, config_value(model, key), x) for key, x in needed.items()]
        return [change for change in changes if change.value != change.needed]

    def weights(self, convention: str) -> dict[str, Tensor]:
        """Returns the names and shapes of the model's weights, as tensors on the meta device.

        Raises:
            CheckpointError: The model cannot be built; the message says why.
        """
        cfg = self.config_with(convention)
        try:
            with torch.device("meta"):
                return instantiate(cfg.model).state_dict()
        except (ValueError, AssertionError, RuntimeError) as error:
            settings = ", ".join(f"model.{key}={value}" for key, value in self.settings.items())
            raise CheckpointError(
                f"the shapes of these weights are those of {self.config} with {settings}, which "
                f"cannot be built: {error}"
            ) from None


def infer_architecture(state_dict: Mapping[str, Tensor], detector: str = "atss") -> Architecture:
    """Finds the model that weights in our names belong to.

    Args:
        state_dict: The weights.
        detector: Key of :data:`MMDET_HEADS`.

    Raises:
        CheckpointError: The weights fit none of our models; the message says what was found.
    """
    shape = _Shapes({without_dyhead(name): value for name, value in state_dict.items()})
    dyhead = _dyhead(shape)
    found = {**_resnet(shape), **_neck_and_head(shape, detector)}
    config = _config(found, detector, with_dyhead=bool(dyhead))
    model = get_config(config).model
    if dyhead:  # the FPN is a part of it
        found = {re.sub(r"^backbone\.", "backbone.backbone.", k): x for k, x in found.items()}
    known = arguments_of(target_of(model.head))
    settings = {
        key: value
        for key, value in {**found, **dyhead}.items()
        if not (key.startswith("head.") and key.split(".")[1] not in known)
        and config_value(model, key) != value
    }
    return Architecture(config, settings, detector)


class _Shapes:
    """Shapes of a state dict by name; a missing name raises an error that names it."""

    def __init__(self, state_dict: Mapping[str, Tensor]) -> None:
        self._shapes = {name: tuple(value.shape) for name, value in state_dict.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def conv(self, name: str) -> tuple[int, ...]:
        """Returns (output channels, input channels of a group, height, width)."""
        if name not in self._shapes:
            raise CheckpointError(
                f"these are not the weights of an ATSS with a ResNet and FPN: {name} is not there"
            )
        shape = self._shapes[name]
        if len(shape) != 4 or 0 in shape:
            raise CheckpointError(f"{name} has shape {shape}, but is that of a convolution")
        return shape

    def count(self, pattern: str) -> int:
        """Counts the distinct values of the group of a pattern among the names."""
        matches = (re.match(pattern, name) for name in self._shapes)
        return len({match[1] for match in matches if match})


def _resnet(shape: _Shapes) -> dict[str, Any]:
    """Returns the settings of ``backbone.bottom_up``."""
    blocks = tuple(shape.count(rf"{re.escape(_RES)}\.res{i}\.(\d+)\.") for i in range(2, 6))
    is_bottleneck = f"{_RES}.res2.0.conv3.weight" in shape
    if (blocks, is_bottleneck) not in _DEPTHS:
        kind = "bottleneck" if is_bottleneck else "basic"
        raise CheckpointError(
            f"a ResNet with {list(blocks)} {kind} blocks in res2 to res5 is none of depth "
            f"{', '.join(str(depth) for depth in _DEPTHS.values())}"
        )
    channels, group_width, *_ = shape.conv(f"{_RES}.res2.0.conv2.weight")
    out_conv = f"{_RES}.res2.0.conv{3 if is_bottleneck else 2}.weight"
    stem_channels = shape.conv(f"{_RES}.stem.conv1.weight")[0]
    is_deformed = [f"{_RES}.res{i}.0.conv2_offset.weight" in shape for i in range(2, 6)]
    settings = {
        "stem.out_channels": stem_channels,
        "stages.depth": _DEPTHS[blocks, is_bottleneck],
        "stages.num_groups": channels // group_width if is_bottleneck else 1,
        "stages.width_per_group": group_width if is_bottleneck else 64,
        "stages.stem_out_channels": stem_channels,
        "stages.res2_out_channels": shape.conv(out_conv)[0],
        "stages.deform_on_per_stage": is_deformed,
    }
    if any(is_deformed):
        stage = 2 + is_deformed.index(True)
        offsets = shape.conv(f"{_RES}.res{stage}.0.conv2_offset.weight")[0]
        # Two offset channels per point; masks (v2) add a third channel.
        is_modulated = offsets % (3 * _POINTS) == 0
        settings["stages.deform_modulated"] = is_modulated
        settings["stages.deform_num_groups"] = offsets // _POINTS // (3 if is_modulated else 2)
    return {f"backbone.bottom_up.{key}": value for key, value in settings.items()}


def _config(found: Mapping[str, Any], detector: str, *, with_dyhead: bool) -> str:
    """Returns the name of the config to start from."""
    head = MMDET_HEADS[detector]
    if with_dyhead:
        if head.config_with_dyhead is None:
            raise CheckpointError(f"{head.title} with DyHead is not converted: no config has both")
        return head.config_with_dyhead
    if detector != "atss":
        return head.config
    stages = "backbone.bottom_up.stages"
    groups, width, depth = (
        found[f"{stages}.{key}"] for key in ("num_groups", "width_per_group", "depth")
    )
    is_deformed = any(found[f"{stages}.deform_on_per_stage"])
    return _CONFIGS.get((groups, width, depth, is_deformed), head.config)


def _dyhead(shape: _Shapes) -> dict[str, Any]:
    """Returns the settings of DyHead, empty if there is none."""
    num_blocks = shape.count(r"backbone\.blocks\.(\d+)\.")
    if not num_blocks:
        return {}
    channels = shape.conv("backbone.blocks.0.same.weight")[0]
    return {"backbone.num_blocks": num_blocks, "backbone.channels": channels}


def _neck_and_head(shape: _Shapes, detector: str) -> dict[str, Any]:
    """Returns the settings of the FPN, of ``head``, and of what depends on it."""
    own = MMDET_HEADS[detector].settings(shape.conv)
    num_values = own.get("head.num_box_values", 4)
    num_anchors = shape.conv("head.bbox_pred.weight")[0] // num_values
    if num_anchors != 1:
        raise CheckpointError(
            f"the head predicts boxes of {num_anchors} anchors per location; only models with one "
            "are converted, as the order of several is another one here"
        )
    dims = []
    while (name := _tower_conv(shape, len(dims))) in shape:
        dims.append(shape.conv(name)[0])
    predictor = shape.conv("head.cls_score.weight")
    channels = shape.conv("backbone.fpn_output3.weight")[0]
    settings = {
        "num_classes": predictor[0],
        "backbone.out_channels": channels,
        "head.deform_first_conv": _is_deformable(shape, 0, 2),
        "head.deform_last_conv": _is_deformable(shape, len(dims) - 1, 3),
        "head.conv_dims": dims,
        "head.pred_kernel_size": predictor[2],
        **own,
    }
    channels = _dyhead(shape).get("backbone.channels", channels)
    if channels != 256:
        settings |= {f"head.input_shape.{level}.channels": channels for level in range(5)}
    return settings


def _is_deformable(shape: _Shapes, index: int, values: int) -> bool:
    """Returns whether a tower's convolution has 2 values a point, offsets, or 3, with masks."""
    name = f"head.cls_subnet.{3 * index}.offset.weight"
    return name in shape and shape.conv(name)[0] == values * _POINTS


def _tower_conv(shape: _Shapes, index: int) -> str:
    """Returns the name of a tower convolution's weight; a block is convolution, norm and ReLU."""
    room = f"head.cls_subnet.{3 * index}"
    return f"{room}.conv.weight" if f"{room}.conv.weight" in shape else f"{room}.weight"
