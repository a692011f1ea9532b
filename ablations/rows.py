"""The experiments of the paper, Tables 1 to 7: one row, one config, one quoted number."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from atss_d2.plain.suggestions import did_you_mean


@dataclass(frozen=True)
class Row:
    """One row of a table of the paper.

    Args:
        name: Table and row, as below ``configs/ablations/``: ``"table4/k9"``.
        label: Name of the row in a document.
        quoted_ap: Box AP on COCO val2017 that the paper reports; None if it gives no number.
        coco_config: Name of its config; default: that below ``configs/ablations/``.
        small_config: Name of its config for ``--data shapes``; default: its COCO config, adapted.
    """

    name: str
    label: str
    quoted_ap: float | None
    coco_config: str | None = None
    small_config: str | None = None

    @property
    def table(self) -> str:
        """``"table1"`` to ``"table7"``, ``"quality"`` or ``"rpn"``."""
        return self.name.split("/")[0]

    @property
    def config(self) -> str:
        """Name of the config for :func:`atss_d2.get_config`."""
        return self.coco_config or f"ablations/{self.name}"


TABLES = {
    "table1": "Table 1: from RetinaNet to FCOS, one anchor per location",
    "table2": "Table 2: definition of positives and start of regression",
    "table3": "Table 3: ATSS in both detectors",
    "table4": "Table 4: k, candidates per level",
    "table5": "Table 5: scale of the anchor, as a multiple of the stride",
    "table6": "Table 6: aspect ratio of the anchor (width : height), scale 8",
    "table7": "Table 7: several anchors per location (scales x aspect ratios)",
}

_K_APS = {3: 38.0, 5: 38.8, 7: 39.1, 9: 39.3, 11: 39.1, 13: 39.0, 15: 39.1, 17: 39.2, 19: 38.9}
_SCALE_APS = {5: 39.0, 6: 39.2, 7: 39.3, 8: 39.3, 9: 38.9}
_ASPECT_APS = {"1:4": None, "1:2": None, "1:1": 39.3, "2:1": None, "4:1": None}

# In the order of the paper. If rows have equal configs, the first names the run.
ROWS = (
    Row("table1/retinanet", "RetinaNet (#A=1)", 32.5),
    Row("table1/retinanet_gn", "+ GroupNorm", 33.4),
    Row("table1/retinanet_giou", "+ GIoU loss", 34.9),
    Row("table1/retinanet_in_gt", "+ in GT box", 35.3),
    Row("table1/retinanet_centerness", "+ centerness", 36.8),
    Row("table1/retinanet_scalar", "+ scalar", 37.0),
    Row("table1/fcos", "FCOS", 37.8),
    Row("table2/iou_box", "IoU, box", 37.0),
    Row("table2/iou_point", "IoU, point", 36.9),
    Row("table2/spatial_scale_box", "spatial and scale, box", 37.8),
    Row("table2/spatial_scale_point", "spatial and scale, point", 37.8),
    Row("table3/retinanet", "RetinaNet (#A=1)", 37.0),
    Row("table3/retinanet_atss", "RetinaNet (#A=1) + ATSS", 39.3),
    Row("table3/fcos", "FCOS", 37.8),
    Row("table3/fcos_center_sampling", "FCOS + center sampling", 38.6),
    Row("table3/fcos_atss", "FCOS + ATSS", 39.2),
    *(Row(f"table4/k{k}", f"k = {k}", ap) for k, ap in _K_APS.items()),
    *(Row(f"table5/scale{s}", f"scale {s}", ap) for s, ap in _SCALE_APS.items()),
    *(
        Row(f"table6/aspect_{ratio.replace(':', '_')}", ratio, ap)
        for ratio, ap in _ASPECT_APS.items()
    ),
    Row("table7/retinanet_a9", "RetinaNet (#A=9)", 36.3),
    Row("table7/retinanet_a9_improved", "+ improvements", 38.4),
    Row("table7/atss_3x3", "+ ATSS (3 x 3)", 39.2),
    Row("table7/atss_3x1", "+ ATSS (3 x 1)", 39.3),
    Row("table7/atss_1x3", "+ ATSS (1 x 3)", 39.2),
    Row("table7/atss_1x1", "+ ATSS (1 x 1)", 39.3),
)

BASELINE = Row("quality/atss", "ATSS", 39.3, "coco/atss_R_50_FPN_1x", "demo/atss_shapes_wide")


def _quality(name: str, label: str, quoted_ap: float | None, *, on_coco: bool = True) -> Row:
    small = f"demo/{name}_shapes_wide"
    return Row(
        f"quality/{name}", label, quoted_ap, f"coco/{name}_R_50_FPN_1x" if on_coco else small, small
    )


# What grew out of ATSS, see docs/quality.md and ablations/quality.py.
QUALITY_ROWS = (
    BASELINE,
    _quality("atss_iou", "ATSS, IoU branch", 39.4),
    _quality("atss_vfl", "ATSS, varifocal loss", 40.2),
    _quality("gfl", "GFL", 40.2),
    _quality("gflv2", "GFLv2", 41.0),
    _quality("paa", "PAA", 40.4),
    _quality("vfnet", "VFNet", 41.6),
    _quality("tood", "TOOD", 42.5),
    _quality("ddod", "DDOD", 41.6),
    _quality("ddod_plain", "DDOD, no deformable convolutions", None, on_coco=False),
    _quality("atss_deform", "ATSS, DDOD's deformable convolutions", None, on_coco=False),
    _quality("atss_dyhead", "ATSS, DyHead", 42.4),
    _quality("atss_simota", "ATSS's head, SimOTA", None, on_coco=False),
    _quality("atss_dsla", "ATSS's head, dynamic soft labels", None, on_coco=False),
)


def _rpn(name: str, label: str, quoted_ap: float | None = None) -> Row:
    return Row(
        f"rpn/{name}", label, quoted_ap, f"rcnn/{name}_R_50_FPN_1x", f"demo/{name}_shapes_wide"
    )


# RPNs in Detectron2's R-CNNs, see docs/integration.md and ablations/proposals.py. A row is compared
# with the one whose name ends before "_atss".
RPN_ROWS = (
    _rpn("faster_rcnn", "Faster R-CNN", 37.9),
    _rpn("faster_rcnn_atss_rpn", "Faster R-CNN, ATSS, sampled"),
    _rpn("faster_rcnn_atss_rpn_focal", "Faster R-CNN, ATSS, focal"),
    _rpn("cascade_rcnn", "Cascade R-CNN", 40.3),
    _rpn("cascade_rcnn_atss_rpn", "Cascade R-CNN, ATSS, sampled"),
    _rpn("cascade_rcnn_atss", "Cascade R-CNN, an ATSS detector first"),
    _rpn("mask_rcnn", "Mask R-CNN", 38.6),
    _rpn("mask_rcnn_atss_rpn", "Mask R-CNN, ATSS, sampled"),
)


def select_rows(patterns: Sequence[str]) -> list[Row]:
    """Returns the rows whose names match one of the patterns, in the order of the paper.

    Args:
        patterns: Shell patterns such as ``"table3/*"`` or ``"table4/k[39]"``.

    Raises:
        ValueError: A pattern matches no row; the message names the nearest rows.
    """
    rows = (*ROWS, *QUALITY_ROWS, *RPN_ROWS)
    names = [row.name for row in rows]
    selected = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            otherwise = "--list names all rows"
            hint = did_you_mean(pattern, [*names, *TABLES], cutoff=0.4, otherwise=otherwise)
            raise ValueError(f"no row fits '{pattern}'; {hint}")
        selected.update(found)
    return [row for row in rows if row.name in selected]


def find_row(name: str) -> Row:
    """Returns the row with a name; see :func:`select_rows` for the error."""
    return select_rows([name])[0]
