"""What other implementations of ATSS do differently, as settings of ours.

A recipe holds what makes the weights of an implementation give the detections that they give there,
and what its labels and losses are made of, as far as we have settings for it (docs/checkpoints.md
lists the rest). :func:`apply_recipe` sets it in a config of either kind;
``configs/common/recipes.py`` gives it to LazyConfigs. Schedules, augmentation and learning rates
are not part of a recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..modeling.anchor_generator import ShiftedAnchorGenerator
from ..modeling.atss import ATSS
from ..modeling.box_coding import PointDistances, box2box_transform
from ..modeling.build import MATCHERS


@dataclass(frozen=True)
class Recipe:
    """How an implementation of ATSS turns weights into detections, in our terms.

    Attributes:
        title: What the implementation is.
        anchor_offset: Centre of the first anchor, in strides.
        center_shift: Pixels that centres lie beside that.
        inset: Pixels taken off the distances from a centre to the sides of a box, in matchers, in
            centerness targets and in regression from points.
        floor_per_image: Whether an image without positives counts as one in the losses' normaliser.
        clamp_both_sides: Whether decoded dw and dh have a least value, too.
        p7_relu: Whether P7 is made from ReLU(P6).
        conv_bias: Whether the convolutions of the towers have a bias.
        stride_in_1x1: Whether a ResNet has its strides in 1x1 convolutions; no ResNeXt has.
        score_type: Score of a detection, see :class:`atss_d2.ATSS`.
        rank_by: Ranking of candidates, see :class:`atss_d2.ATSS`.
        pixel_mean: Mean per channel, in the order of ``input_format``.
        pixel_std: Standard deviation per channel.
        input_format: Order of channels.
        frozen_bn_has_eps: Whether its frozen BatchNorm adds an epsilon to the variance, as
            Detectron2's does.
    """

    title: str
    anchor_offset: float
    center_shift: float
    inset: float
    floor_per_image: bool
    clamp_both_sides: bool
    p7_relu: bool
    conv_bias: bool
    stride_in_1x1: bool
    score_type: str
    rank_by: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    input_format: str
    frozen_bn_has_eps: bool


RECIPES: Mapping[str, Recipe] = {
    "authors": Recipe(
        title="the authors' release",
        # Their corners are pixels that belong to the box: continuous (x1, y1, x2 + 1, y2 + 1).
        anchor_offset=0.5,
        center_shift=0.5,
        inset=0.5,
        floor_per_image=False,
        clamp_both_sides=False,
        p7_relu=True,
        conv_bias=True,
        stride_in_1x1=True,
        score_type="sqrt",
        rank_by="score",
        pixel_mean=(102.9801, 115.9465, 122.7717),
        pixel_std=(1.0, 1.0, 1.0),
        input_format="BGR",
        frozen_bn_has_eps=False,
    ),
    "mmdet": Recipe(
        title="mmdetection 3.x",
        anchor_offset=0.0,
        center_shift=0.0,
        inset=0.0,
        floor_per_image=True,
        clamp_both_sides=True,
        p7_relu=False,
        conv_bias=False,
        stride_in_1x1=False,
        score_type="product",
        rank_by="class_score",
        pixel_mean=(123.675, 116.28, 103.53),
        pixel_std=(58.395, 57.12, 57.375),
        input_format="RGB",
        frozen_bn_has_eps=True,
    ),
}
# Both have these; a config may have been changed.
_SAME_IN_ALL = {
    "test_score_thresh": 0.05,
    "test_topk_candidates": 1000,
    "test_nms_thresh": 0.6,
    "max_detections_per_image": 100,
}


def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: There is no such recipe; the message names those there are.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got '{name}'")
    return RECIPES[name]


def apply_recipe(cfg: DictConfig | CfgNode, recipe: str) -> DictConfig | CfgNode:
    """Sets in a config all that makes the weights of another implementation give its results.

    Number of classes, depth, deformable convolutions and all else that a recipe does not know stay
    as they are. A recipe sets all of its values, so a second call takes back the first.

    Args:
        cfg: A LazyConfig, its node ``model``, or a yaml config; changed in place.
        recipe: ``"authors"`` or ``"mmdet"``.

    Returns:
        ``cfg``.

    Raises:
        ValueError: There is no such recipe, or the config has another model than ATSS, or an anchor
            generator or box coder for which a recipe has no setting; the message names it.
    """
    settings = recipe_settings(cfg, recipe)
    if isinstance(cfg, CfgNode):
        cfg.merge_from_list([item for setting in settings.items() for item in setting])
    else:
        node = _model_node(cfg)
        for key, value in settings.items():
            OmegaConf.update(node, key, value, merge=False)
    return cfg


def recipe_settings(cfg: DictConfig | CfgNode, recipe: str) -> dict[str, Any]:
    """What :func:`apply_recipe` sets.

    Returns:
        Keys below ``model`` of a LazyConfig, or of a yaml config, and their values.

    Raises:
        ValueError: As in :func:`apply_recipe`.
    """
    values = get_recipe(recipe)
    if isinstance(cfg, CfgNode):
        return _yaml_settings(cfg, values)
    return _lazy_settings(_model_node(cfg), values)


def _model_node(cfg: DictConfig) -> DictConfig:
    return cfg.model if "_target_" not in cfg and "model" in cfg else cfg


def _lazy_settings(node: DictConfig, recipe: Recipe) -> dict[str, Any]:
    model = _target(node)
    if not (isinstance(model, type) and issubclass(model, ATSS)):
        raise ValueError(f"a recipe is for the model ATSS, got {_name(model)}")
    generators = (DefaultAnchorGenerator, ShiftedAnchorGenerator)
    generator = _check_target(node, "anchor_generator", generators)
    coder = _check_target(node, "box2box_transform", (box2box_transform, PointDistances))
    settings: dict[str, Any] = {"anchor_generator.offset": recipe.anchor_offset}
    if recipe.center_shift or generator is ShiftedAnchorGenerator:
        settings["anchor_generator._target_"] = ShiftedAnchorGenerator
        settings["anchor_generator.center_shift"] = recipe.center_shift
    if coder is PointDistances:
        settings["box2box_transform.inset"] = recipe.inset
    else:
        settings["box2box_transform.clamp_both_sides"] = recipe.clamp_both_sides
    if "inset" in arguments_of(node.matcher):
        settings["matcher.inset"] = recipe.inset
    if "p7_relu" in arguments_of(node.backbone):
        settings["backbone.p7_relu"] = recipe.p7_relu
    stages = OmegaConf.select(node, "backbone.bottom_up.stages")
    if isinstance(stages, DictConfig) and "stride_in_1x1" in arguments_of(stages):
        is_resnet = stages.get("num_groups", 1) == 1
        settings["backbone.bottom_up.stages.stride_in_1x1"] = recipe.stride_in_1x1 and is_resnet
    return {
        **settings,
        "head.conv_bias": recipe.conv_bias,
        "centerness_inset": recipe.inset,
        "floor_per_image": recipe.floor_per_image,
        "test_score_type": recipe.score_type,
        "test_rank_by": recipe.rank_by,
        **_SAME_IN_ALL,
        "pixel_mean": list(recipe.pixel_mean),
        "pixel_std": list(recipe.pixel_std),
        "input_format": recipe.input_format,
    }


def _check_target(node: DictConfig, key: str, known: tuple[Callable, ...]) -> Callable:
    target = _target(node[key])
    if target not in known:
        names = " and ".join(_name(x) for x in known)
        raise ValueError(f"a recipe knows model.{key} {names}, got {_name(target)}")
    return target


def _target(node: DictConfig) -> Any:
    target = node.get("_target_")
    return locate(target) if isinstance(target, str) else target


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def arguments_of(node: DictConfig) -> Mapping[str, inspect.Parameter]:
    """Arguments of what a node of a LazyConfig builds."""
    return inspect.signature(_target(node)).parameters


def config_value(model: DictConfig, key: str) -> Any:
    """What a config has below its ``model``; where it is silent, the default of the argument."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(model, parent) if parent else model
    if name == "_target_":
        return _target(node)
    if name in node:
        value = node[name]
    else:
        parameter = arguments_of(node).get(name)
        value = None if parameter is None else parameter.default
    return list(value) if isinstance(value, (tuple, ListConfig)) else value


def _yaml_settings(cfg: CfgNode, recipe: Recipe) -> dict[str, Any]:
    known = ("DefaultAnchorGenerator", "ShiftedAnchorGenerator")
    if cfg.MODEL.ANCHOR_GENERATOR.NAME not in known:
        raise ValueError(
            f"a recipe knows MODEL.ANCHOR_GENERATOR.NAME {' and '.join(known)}, got "
            f"{cfg.MODEL.ANCHOR_GENERATOR.NAME}"
        )
    node = cfg.MODEL.ATSS
    insets = [key for key, _ in MATCHERS.values() if "INSET" in node[key]] + ["POINT_DISTANCES"]
    name = known[1] if recipe.center_shift else cfg.MODEL.ANCHOR_GENERATOR.NAME
    return {
        "MODEL.ANCHOR_GENERATOR.NAME": name,
        "MODEL.ANCHOR_GENERATOR.OFFSET": recipe.anchor_offset,
        "MODEL.ATSS.ANCHOR_GENERATOR.CENTER_SHIFT": recipe.center_shift,
        "MODEL.ATSS.BOX2BOX_TRANSFORM.CLAMP_BOTH_SIDES": recipe.clamp_both_sides,
        **{f"MODEL.ATSS.{key}.INSET": recipe.inset for key in insets},
        "MODEL.ATSS.FPN.P7_RELU": recipe.p7_relu,
        "MODEL.RESNETS.STRIDE_IN_1X1": recipe.stride_in_1x1 and cfg.MODEL.RESNETS.NUM_GROUPS == 1,
        "MODEL.ATSS.HEAD.CONV_BIAS": recipe.conv_bias,
        "MODEL.ATSS.CENTERNESS_INSET": recipe.inset,
        "MODEL.ATSS.FLOOR_PER_IMAGE": recipe.floor_per_image,
        "MODEL.ATSS.TEST_SCORE_TYPE": recipe.score_type,
        "MODEL.ATSS.TEST_RANK_BY": recipe.rank_by,
        **{f"MODEL.ATSS.{name.upper()}": value for name, value in _SAME_IN_ALL.items()},
        "TEST.DETECTIONS_PER_IMAGE": _SAME_IN_ALL["max_detections_per_image"],
        "MODEL.PIXEL_MEAN": list(recipe.pixel_mean),
        "MODEL.PIXEL_STD": list(recipe.pixel_std),
        "INPUT.FORMAT": recipe.input_format,
    }
