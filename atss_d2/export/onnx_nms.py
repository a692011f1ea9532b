"""NMS with ONNX's own operator, which separates images and classes.

Shapes: N images, T boxes, K classes, P planes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..modeling.nms import kept_by_nms

# Maximum number of classes that the operator separates; each takes memory for a score per box.
_MAX_PLANES = 64


def onnx_kept_by_nms(num_classes: int) -> Callable[..., Tensor]:
    """Returns a function like :func:`.nms.kept_by_nms` for a graph that becomes ONNX.

    ONNX's operator applies NMS per image and class, for any number of images. With more than P = 64
    classes, several share a plane, in which their boxes are shifted apart.

    Args:
        num_classes: K.
    """
    num_planes = min(num_classes, _MAX_PLANES)
    row_length = math.ceil(math.sqrt(math.ceil(num_classes / num_planes)))

    def kept(
        boxes: Tensor, scores: Tensor, classes: Tensor, is_box: Tensor, iou_thresh: float
    ) -> Tensor:
        planes = classes % num_planes  # (N, T)
        if row_length > 1:
            # A square grid rather than a row, so that coordinates stay small enough for float32.
            cells = classes // num_planes
            shifts = torch.stack((cells % row_length, cells // row_length), dim=-1)
            boxes = boxes + (shifts * (boxes.max().ceil() + 1)).repeat(1, 1, 2)
        is_in_plane = planes[:, None] == torch.arange(num_planes, device=boxes.device)[:, None]
        scores = torch.where(is_in_plane & is_box[:, None], scores[:, None], -1.0)
        return torch.ops.atss_d2.kept_per_plane(boxes, scores, iou_thresh)

    return kept


# With its schema, which torch 2.4 cannot read from postponed annotations.
@torch.library.custom_op(
    "atss_d2::kept_per_plane",
    mutates_args=(),
    schema="(Tensor boxes, Tensor scores, float iou_thresh) -> Tensor",
)
def _kept_per_plane(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    """Returns which boxes (N, T, 4) NMS keeps, (N, T); scores (N, P, T) are -1 in other planes."""
    scores, planes = scores.max(dim=1)
    return kept_by_nms(boxes, scores, planes, scores > -0.5, iou_thresh)


@_kept_per_plane.register_fake
def _(boxes: Tensor, scores: Tensor, iou_thresh: float) -> Tensor:
    return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)


def onnx_translations() -> dict[Callable, Callable]:
    """Returns a table for ``torch.onnx.export(custom_translation_table=...)``; needs onnxscript."""
    from onnxscript import opset18 as op

    def kept_per_plane(boxes, scores, iou_thresh: float):
        # In float32, an IoU of 3/5 is above 0.6, as in torchvision.
        threshold = np.float32(iou_thresh)
        if float(threshold) > iou_thresh:
            threshold = np.nextafter(threshold, np.float32(0))
        most = np.iinfo(np.int64).max
        kept = op.NonMaxSuppression(  # (D, 3): image, plane, box
            boxes,
            scores,
            op.Constant(value_ints=[int(most)]),
            op.Constant(value_floats=[float(threshold)]),
            op.Constant(value_floats=[-0.5]),
        )
        places = op.Gather(kept, op.Constant(value_ints=[0, 2]), axis=1)  # (D, 2)
        shape = op.Slice(op.Shape(boxes), op.Constant(value_ints=[0]), op.Constant(value_ints=[2]))
        nothing = op.Cast(op.Expand(op.Constant(value_float=0.0), shape), to=9)  # bool
        ones = op.Slice(op.Shape(kept), op.Constant(value_ints=[0]), op.Constant(value_ints=[1]))
        return op.ScatterND(
            nothing, places, op.Cast(op.Expand(op.Constant(value_float=1.0), ones), to=9)
        )

    return {torch.ops.atss_d2.kept_per_plane.default: kept_per_plane}
