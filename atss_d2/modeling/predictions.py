"""Turns the maps of a head into :class:`Predictions`, and into what a rule may see of them.

Shapes: N images, L levels of size Hi x Wi, A anchors per location, R = sum(Hi x Wi x A), K classes,
D values that the box coder takes for an anchor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch import Tensor

from .nouns import DecodedPredictions, Predictions

_OUTPUTS = ("class logits", "box regression", "quality", "first box regression")


def predictions_from_maps(
    maps: Sequence[Sequence[Tensor]],
    *,
    num_anchors: Sequence[int],
    num_classes: int,
    num_box_values: int,
) -> Predictions:
    """Rearranges the maps of a head by anchor.

    Args:
        maps: Two to four lists of L maps: class logits (N, A K, Hi, Wi), box regression (N, A D,
            Hi, Wi) and, optionally, quality logits (N, A, Hi, Wi) and the regression (N, A D, Hi,
            Wi) of first boxes. A list without maps stands for an output that the head lacks.
        num_anchors: A of the L levels.
        num_classes: K.
        num_box_values: D.

    Raises:
        ValueError: The number of outputs, levels or channels is wrong; the message names both
            numbers.
    """
    if not 2 <= len(maps) <= len(_OUTPUTS):
        raise ValueError(
            f"the head gives {len(maps)} outputs, but a detector takes 2 to {len(_OUTPUTS)}: "
            f"{', '.join(_OUTPUTS[:2])} and, optionally, {' and '.join(_OUTPUTS[2:])}"
        )
    flat = []
    widths = (num_classes, num_box_values, 1, num_box_values)
    for name, levels, width in zip(_OUTPUTS, maps, widths):
        if name in _OUTPUTS[2:] and not len(levels):
            flat.append(None)
            continue
        if len(levels) != len(num_anchors):
            raise ValueError(
                f"the head gives {name} for {len(levels)} levels, but there are "
                f"{len(num_anchors)} levels of anchors"
            )
        for level, count in zip(levels, num_anchors):
            if level.shape[1] != count * width:
                raise ValueError(
                    f"the head gives {name} of {level.shape[1]} channels, but {count} anchors per "
                    f"location with {width} values each need {count * width}"
                )
        flat.append([permute_to_N_HWA_K(level, width) for level in levels])
    logits, regression, quality, first_regression = flat + [None] * (len(_OUTPUTS) - len(flat))
    if quality is not None:
        quality = [level.squeeze(2) for level in quality]
    return Predictions(logits, regression, quality, first_regression)


@torch.no_grad()
def decode_predictions(
    predictions: Predictions, anchors: Sequence[Tensor], box_coder
) -> DecodedPredictions:
    """Decodes predictions for a rule with ``needs_predictions``, in float32 even under autocast.

    Args:
        predictions: Predictions for N images.
        anchors: L x (Ri, 4).
        box_coder: Box coder of the regression.
    """
    with torch.autocast(anchors[0].device.type, enabled=False):
        regression = torch.cat(predictions.regression, dim=1).float()  # (N, R, D)
        num_images = len(regression)
        boxes = box_coder.apply_deltas(
            regression.flatten(0, 1), torch.cat(list(anchors)).repeat(num_images, 1)
        )
    quality = predictions.quality
    return DecodedPredictions(
        torch.cat(predictions.logits, dim=1).detach().float(),
        boxes.unflatten(0, (num_images, -1)),
        None if quality is None else torch.cat(quality, dim=1).detach().float(),
    )
