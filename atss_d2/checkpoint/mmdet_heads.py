"""The detectors of mmdetection that are converted: names in their heads, and their configs.

A detector is a row of :data:`MMDET_HEADS`. Towers, scales, necks and backbones have the same names
in all of them, see :mod:`atss_d2.checkpoint.foreign_names`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class MMDetHead:
    """A detector of mmdetection, in our terms.

    Attributes:
        title: Its name in sentences.
        config: Our config of it with ResNet-50 and FPN.
        modules: Pattern of a module's name -> ours.
        sign: Module by which a checkpoint of it is recognized. None: its names are those of ATSS
            (as PAA's are), and it has to be asked for by its key.
        left: Pattern of a key that is not a weight -> why it is skipped.
        parts: Key of a model's part -> name of its class; models with these parts are of this row.
        settings: Returns keys below ``model`` and the values that shapes tell beyond those of all
            heads. It is given a function that returns the shape of the weight of a convolution.
        convention: Keys below ``model`` and their values under the convention "mmdet" where these
            differ from those of ATSS.
        p7_relu: Whether P7 is made from ReLU(P6); None: as in ATSS.
        config_with_dyhead: Our config of it with DyHead, if there is one.
    """

    title: str
    config: str
    modules: Mapping[str, str]
    sign: str | None = None
    left: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    settings: Callable[[Callable[[str], Shape]], dict[str, Any]] = lambda shape: {}
    convention: Mapping[str, Any] = field(default_factory=dict)
    p7_relu: bool | None = None
    config_with_dyhead: str | None = None


def _bins(shape: Callable[[str], Shape]) -> dict[str, Any]:
    num_values = shape("head.bbox_pred.weight")[0]
    return {"box2box_transform.num_bins": num_values // 4, "head.num_box_values": num_values}


def _shared_convs(shape: Callable[[str], Shape]) -> dict[str, Any]:
    channels, stacked, *_ = shape("head.cls_decomposition.reduction.weight")
    return {"head.conv_dims": [channels] * (stacked // channels)}


_OF_ATSS = {
    r"bbox_head\.atss_cls": "head.cls_score",
    r"bbox_head\.atss_reg": "head.bbox_pred",
    r"bbox_head\.atss_centerness": "head.ctrness",
}
MMDET_HEADS: Mapping[str, MMDetHead] = {
    "atss": MMDetHead(
        title="ATSS",
        config="coco/atss_R_50_FPN_1x",
        modules=_OF_ATSS,
        config_with_dyhead="coco/atss_dyhead_R_50_FPN_1x",
    ),
    "gfl": MMDetHead(
        title="GFL",
        config="coco/gfl_R_50_FPN_1x",
        modules={
            r"bbox_head\.gfl_cls": "head.cls_score",
            r"bbox_head\.gfl_reg": "head.bbox_pred",
        },
        sign="bbox_head.gfl_cls",
        left={r"bbox_head\.integral\.project": "computed anew"},
        parts={"box2box_transform": "DistanceDistributions", "criterion": "SoftTargetCriterion"},
        settings=_bins,
    ),
    "paa": MMDetHead(
        title="PAA",
        config="coco/paa_R_50_FPN_1x",
        modules=_OF_ATSS,  # whose centerness predicts IoU
        parts={"matcher": "PAAMatcher", "criterion": "IoUBranchCriterion"},
        convention={
            "matcher.low_quality_override": True,
            "matcher.giou_cost_weight": 1.3,
            "matcher.keep_undivided": False,
            "criterion.floor_per_image": False,
            "criterion.floor_by_images": True,
            "test_thresh_on": "score",
            "test_score_type": "sqrt",
            "test_rank_by": "score",
            "score_voting": 0.025,
        },
    ),
    "ddod": MMDetHead(
        title="DDOD",
        config="coco/ddod_R_50_FPN_1x",
        modules={
            r"bbox_head\.atss_cls": "head.cls_score",
            r"bbox_head\.atss_reg": "head.bbox_pred",
            r"bbox_head\.atss_iou": "head.ctrness",
        },
        sign="bbox_head.atss_iou",
        parts={"matcher": "DDODMatcher", "criterion": "DDODCriterion"},
        convention={"criterion.shared_counter": True},
    ),
    "vfnet": MMDetHead(
        title="VFNet",
        config="coco/vfnet_R_50_FPN_1x",
        modules={
            r"bbox_head\.vfnet_cls_dconv": "head.cls_star",
            r"bbox_head\.vfnet_cls": "head.cls_score",
            r"bbox_head\.vfnet_reg_conv\.conv": "head.first_subnet.0",
            r"bbox_head\.vfnet_reg_conv\.gn": "head.first_subnet.1",
            r"bbox_head\.vfnet_reg": "head.bbox_pred",
            r"bbox_head\.vfnet_reg_refine_dconv": "head.bbox_star",
            r"bbox_head\.vfnet_reg_refine": "head.refined_pred",
            r"bbox_head\.scales_refine\.(\d+)": r"head.refined_scales.\1",
        },
        sign="bbox_head.vfnet_cls",
        parts={"head": "VFNetHead"},
        p7_relu=True,
    ),
    "tood": MMDetHead(
        title="TOOD",
        config="coco/tood_R_50_FPN_1x",
        modules={
            r"bbox_head\.tood_cls": "head.cls_score",
            r"bbox_head\.tood_reg": "head.bbox_pred",
            r"bbox_head\.inter_convs\.(\d+)\.conv": r"head.shared_convs.\1.0",
            r"bbox_head\.inter_convs\.(\d+)\.gn": r"head.shared_convs.\1.1",
            r"bbox_head\.cls_decomp\.(layer_attention\.\d)": r"head.cls_decomposition.\1",
            r"bbox_head\.cls_decomp\.reduction_conv\.conv": "head.cls_decomposition.reduction",
            r"bbox_head\.cls_decomp\.reduction_conv\.gn": "head.cls_decomposition.norm",
            r"bbox_head\.reg_decomp\.(layer_attention\.\d)": r"head.bbox_decomposition.\1",
            r"bbox_head\.reg_decomp\.reduction_conv\.conv": "head.bbox_decomposition.reduction",
            r"bbox_head\.reg_decomp\.reduction_conv\.gn": "head.bbox_decomposition.norm",
            r"bbox_head\.cls_prob_module\.(\d)": r"head.alignment.\1",
            r"bbox_head\.reg_offset_module\.(\d)": r"head.side_offsets.\1",
        },
        sign="bbox_head.tood_cls",
        parts={"head": "TOODHead"},
        settings=_shared_convs,
    ),
}


def recognize_detector(names: Iterable[str]) -> str:
    """Returns the key of the row whose sign is among the names; ``"atss"`` if there is none."""
    modules = {key.rpartition(".")[0] for key in names}
    return next((name for name, head in MMDET_HEADS.items() if head.sign in modules), "atss")


def detector_of(class_of_part: Callable[[str], str]) -> str:
    """Returns the key of the row that a model belongs to, ``"atss"`` if to none of the others.

    Args:
        class_of_part: Returns the name of the class of a part of the model, such as "criterion".
    """
    for name, head in MMDET_HEADS.items():
        if head.parts and all(class_of_part(key) == x for key, x in head.parts.items()):
            return name
    return "atss"


def check_detector(detector: str, convention: str) -> None:
    """Checks the key of a row.

    Raises:
        ValueError: There is no such row, the message names the known ones; or the implementation
            has no such detector.
    """
    if detector not in MMDET_HEADS:
        raise ValueError(f"detector must be one of {', '.join(MMDET_HEADS)}, got '{detector}'")
    if convention != "mmdet" and detector != "atss":
        title = MMDET_HEADS[detector].title
        raise ValueError(f"the convention of {title} is 'mmdet', got '{convention}'")
