"""Conventions: the settings in which other implementations of ATSS differ from the paper's model.

With the settings of a convention, weights of that implementation give the same detections as the
original, and labels and losses are computed as in the original, as far as we have settings for it
(docs/checkpoints.md lists the rest). :func:`apply_convention` sets them in a LazyConfig or yaml
config. Schedules, augmentation and learning rates are not part of a convention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..config import by_kind, target_of
from ..config.arguments import arguments_of
from ..modeling.anchor_generator import ShiftedAnchorGenerator
from ..modeling.atss import ATSS
from ..modeling.box_coding import PointDistances, TwoSidedBox2BoxTransform
from ..modeling.build import key_of
from ..modeling.dyhead import DyHead
from .mmdet_heads import MMDET_HEADS, check_detector, detector_of


@dataclass(frozen=True)
class Convention:
    """How an implementation of ATSS computes labels, losses and detections, in our terms.

    Attributes:
        title: What the implementation is.
        anchor_offset: Center of the first anchor, in strides.
        center_shift: Pixels added to x and y of every center.
        inset: Pixels subtracted from the distances between a center and the sides of a box, in
            matchers, in centerness targets and in regression from points.
        floor_per_image: Whether an image without positives counts as one positive in the normalizer
            of the losses.
        clamp_both_sides: Whether decoded dw and dh also have a minimum.
        p7_relu: Whether P7 is made from ReLU(P6).
        conv_bias: Whether the convolutions of the towers have a bias.
        stride_in_1x1: Whether a ResNet has its strides in 1x1 convolutions; a ResNeXt never does.
        score_type: Score of a detection, see :class:`atss_d2.ATSS`.
        rank_by: Ranking of candidates, see :class:`atss_d2.ATSS`.
        pixel_mean: Mean per channel, in the order of ``input_format``.
        pixel_std: Standard deviation per channel.
        input_format: Order of channels.
        dyhead_divisibility: What DyHead's images are padded to a multiple of; None: as for its FPN.
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
    dyhead_divisibility: int | None
    frozen_bn_has_eps: bool

    @property
    def box_coder(self) -> type:
        """The class of the box coder that regresses from boxes."""
        return TwoSidedBox2BoxTransform if self.clamp_both_sides else Box2BoxTransform


CONVENTIONS: Mapping[str, Convention] = {
    "authors": Convention(
        title="the authors' release",
        # Their corners are pixels inside the box: (x1, y1, x2 + 1, y2 + 1) in continuous
        # coordinates.
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
        dyhead_divisibility=128,
        frozen_bn_has_eps=False,
    ),
    "mmdet": Convention(
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
        dyhead_divisibility=None,
        frozen_bn_has_eps=True,
    ),
}
# Both conventions have these, but for mmdetection's PAA; set as a config may have changed them.
_SAME_IN_ALL = {
    "test_score_thresh": 0.05,
    "test_topk_candidates": 1000,
    "test_nms_thresh": 0.6,
    "max_detections_per_image": 100,
    "test_thresh_on": "class_score",
    "score_voting": None,
}


def get_convention(name: str) -> Convention:
    """Returns the convention with a name.

    Raises:
        ValueError: There is no such convention; the message names the known ones.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got '{name}'")
    return CONVENTIONS[name]


def apply_convention(cfg: DictConfig | CfgNode, convention: str) -> DictConfig | CfgNode:
    """Sets the values of a convention in a config.

    The number of classes, the depth, deformable convolutions and everything else that is not part
    of a convention keep their values. All values are set, so a second call replaces the first.

    Args:
        cfg: A LazyConfig, its ``model`` node, or a yaml config; changed in place.
        convention: ``"authors"`` or ``"mmdet"``.

    Returns:
        ``cfg``.

    Raises:
        ValueError: There is no such convention, the model is not ATSS, or conventions have no
            setting for its anchor generator or box coder; the message names it.
    """
    settings = convention_settings(cfg, convention)
    by_kind(cfg, lazy=_set_lazy, yaml=_set_yaml)(cfg, settings)
    return cfg


def _set_lazy(cfg: DictConfig, settings: dict[str, Any]) -> None:
    node = _model_node(cfg)
    for key, value in settings.items():
        OmegaConf.update(node, key, value, merge=False)


def _set_yaml(cfg: CfgNode, settings: dict[str, Any]) -> None:
    cfg.merge_from_list([item for setting in settings.items() for item in setting])


def convention_settings(cfg: DictConfig | CfgNode, convention: str) -> dict[str, Any]:
    """Returns the values that :func:`apply_convention` sets.

    Returns:
        Keys, below ``model`` in a LazyConfig or from the top of a yaml config, and their values.

    Raises:
        ValueError: As in :func:`apply_convention`.
    """
    get_convention(convention)
    return by_kind(cfg, lazy=_lazy_settings, yaml=_yaml_settings)(cfg, convention)


def _model_node(cfg: DictConfig) -> DictConfig:
    return cfg.model if "_target_" not in cfg and "model" in cfg else cfg


def _lazy_settings(cfg: DictConfig, name: str) -> dict[str, Any]:
    node, convention = _model_node(cfg), CONVENTIONS[name]
    model = target_of(node)
    if not (isinstance(model, type) and issubclass(model, ATSS)):
        raise ValueError(f"conventions are for the model ATSS, got {_name(model)}")
    generators = (DefaultAnchorGenerator, ShiftedAnchorGenerator)
    generator = _check_target(node, "anchor_generator", generators)
    detector = detector_of(lambda key: _name(target_of(node[key])) if node.get(key) else "")
    check_detector(detector, name)
    own = MMDET_HEADS[detector]
    coder = target_of(node.box2box_transform)
    if "box2box_transform" not in own.parts:
        coders = (Box2BoxTransform, TwoSidedBox2BoxTransform, PointDistances)
        coder = _check_target(node, "box2box_transform", coders)
    settings: dict[str, Any] = {"anchor_generator.offset": convention.anchor_offset}
    if convention.center_shift or generator is ShiftedAnchorGenerator:
        settings["anchor_generator._target_"] = ShiftedAnchorGenerator
        settings["anchor_generator.center_shift"] = convention.center_shift
    if coder is PointDistances:
        settings["box2box_transform.inset"] = convention.inset
    elif coder in (Box2BoxTransform, TwoSidedBox2BoxTransform):
        settings["box2box_transform._target_"] = convention.box_coder
    if "inset" in arguments_of(target_of(node.matcher)):
        settings["matcher.inset"] = convention.inset
    pyramid = "backbone"
    if target_of(node.backbone) is DyHead:
        pyramid = "backbone.backbone"
        settings["backbone.offsets_of_upper_level"] = "flattened"
        settings["backbone.size_divisibility"] = convention.dyhead_divisibility
    if "p7_relu" in arguments_of(target_of(OmegaConf.select(node, pyramid))):
        p7_relu = convention.p7_relu if own.p7_relu is None else own.p7_relu
        settings[f"{pyramid}.p7_relu"] = p7_relu
    stages = OmegaConf.select(node, f"{pyramid}.bottom_up.stages")
    if isinstance(stages, DictConfig) and "stride_in_1x1" in arguments_of(target_of(stages)):
        is_resnet = stages.get("num_groups", 1) == 1
        stride_in_1x1 = convention.stride_in_1x1 and is_resnet
        settings[f"{pyramid}.bottom_up.stages.stride_in_1x1"] = stride_in_1x1
    if "conv_bias" in arguments_of(target_of(node.head)):
        settings["head.conv_bias"] = convention.conv_bias
    criterion = node.get("criterion")
    of_losses = arguments_of(model if criterion is None else target_of(criterion))
    floor_per_image = convention.floor_per_image
    if criterion is not None and criterion.get("normalized_by") == "quality":
        floor_per_image = False  # no positives are counted
    for key in ("centerness_inset", "floor_per_image"):
        value = convention.inset if key == "centerness_inset" else floor_per_image
        if key in of_losses:
            settings[key if criterion is None else f"criterion.{key}"] = value
    return {
        **settings,
        "test_score_type": convention.score_type,
        "test_rank_by": convention.rank_by,
        **_SAME_IN_ALL,
        "pixel_mean": list(convention.pixel_mean),
        "pixel_std": list(convention.pixel_std),
        "input_format": convention.input_format,
        **(own.convention if name == "mmdet" else {}),
    }


def _check_target(node: DictConfig, key: str, known: tuple[Callable, ...]) -> Callable:
    target = target_of(node[key])
    if target not in known:
        names = " and ".join(_name(x) for x in known)
        raise ValueError(f"conventions have settings for model.{key} {names}, got {_name(target)}")
    return target


def _name(target: Any) -> str:
    return getattr(target, "__name__", str(target))


def config_value(model: DictConfig, key: str) -> Any:
    """Returns a config's value of a key below ``model``, or else the default of the argument."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(model, parent) if parent else model
    if name == "_target_":
        return target_of(node)
    if name in node:
        value = node[name]
    else:
        parameter = arguments_of(target_of(node)).get(name)
        value = None if parameter is None else parameter.default
    return list(value) if isinstance(value, (tuple, ListConfig)) else value


def _yaml_settings(cfg: CfgNode, name: str) -> dict[str, Any]:
    convention = CONVENTIONS[name]
    known = ("DefaultAnchorGenerator", "ShiftedAnchorGenerator")
    if cfg.MODEL.ANCHOR_GENERATOR.NAME not in known:
        raise ValueError(
            f"conventions have settings for MODEL.ANCHOR_GENERATOR.NAME {' and '.join(known)}, got "
            f"{cfg.MODEL.ANCHOR_GENERATOR.NAME}"
        )
    is_resnet = cfg.MODEL.RESNETS.NUM_GROUPS == 1
    generator = known[1] if convention.center_shift else cfg.MODEL.ANCHOR_GENERATOR.NAME
    node = cfg.MODEL.ATSS
    names = {"head": node.HEAD.NAME, "matcher": node.MATCHER.NAME, "criterion": node.CRITERION.NAME}
    detector = detector_of({**names, "box2box_transform": node.BOX_CODER}.get)
    check_detector(detector, name)
    own = MMDET_HEADS[detector]
    floor_per_image = convention.floor_per_image and key_of(node, "criterion", "floor_per_image")
    has_centerness = key_of(node, "criterion", "centerness_inset")
    takes_quality = key_of(node, "criterion", "normalized_by")
    if takes_quality and node.SOFT_TARGET_CRITERION.NORMALIZED_BY == "quality":
        floor_per_image = False  # no positives are counted
    of_detector = {}
    for key, value in own.convention.items() if name == "mmdet" else ():
        part, _, argument = key.rpartition(".")
        key = key_of(node, part, argument) if part else argument.upper()
        of_detector[f"MODEL.ATSS.{key}"] = value
    return {
        "MODEL.ANCHOR_GENERATOR.NAME": generator,
        "MODEL.ANCHOR_GENERATOR.OFFSET": convention.anchor_offset,
        "MODEL.ATSS.ANCHOR_GENERATOR.CENTER_SHIFT": convention.center_shift,
        "MODEL.ATSS.BOX2BOX_TRANSFORM.CLAMP_BOTH_SIDES": convention.clamp_both_sides,
        "MODEL.ATSS.MATCHER.INSET": convention.inset,
        "MODEL.ATSS.POINT_DISTANCES.INSET": convention.inset,
        "MODEL.ATSS.FPN.P7_RELU": convention.p7_relu if own.p7_relu is None else own.p7_relu,
        "MODEL.RESNETS.STRIDE_IN_1X1": convention.stride_in_1x1 and is_resnet,
        "MODEL.ATSS.HEAD.CONV_BIAS": convention.conv_bias,
        "MODEL.ATSS.CENTERNESS_INSET": convention.inset if has_centerness else 0.0,
        "MODEL.ATSS.FLOOR_PER_IMAGE": bool(floor_per_image),
        "MODEL.ATSS.TEST_SCORE_TYPE": convention.score_type,
        "MODEL.ATSS.TEST_RANK_BY": convention.rank_by,
        **{f"MODEL.ATSS.{key.upper()}": value for key, value in _SAME_IN_ALL.items()},
        "TEST.DETECTIONS_PER_IMAGE": _SAME_IN_ALL["max_detections_per_image"],
        "MODEL.PIXEL_MEAN": list(convention.pixel_mean),
        "MODEL.PIXEL_STD": list(convention.pixel_std),
        "INPUT.FORMAT": convention.input_format,
        **of_detector,
    }
