"""Finds the class predictors of a file that differ from a model's in the number of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

# Names of class predictors, the part of the model with ``num_classes`` ("": the model itself; None:
# every output is a class), and the number of outputs that are not of classes.
_CLASS_PREDICTORS = (
    (r"head\.cls_score\.", "", 0),  # in our models, and in Detectron2's RetinaNet and FCOS
    (r"roi_heads\.box_predictor\.(\d+\.)?cls_score\.", "roi_heads", 1),  # the background
    (r"roi_heads\.box_predictor\.(\d+\.)?bbox_pred\.", "roi_heads", 0),
    (r"roi_heads\.mask_head\.predictor\.", "roi_heads", 0),
    (r"sem_seg_head\.predictor\.", None, 0),
)
Difference = tuple[str, tuple[int, ...], tuple[int, ...]]  # name, shape in file, shape in model


def class_counts(
    model: nn.Module, differences: Sequence[Difference]
) -> dict[tuple[int, int], list[str]]:
    """Returns the names by the classes of file and model; {} if shapes differ otherwise."""
    names: dict[tuple[int, int], list[str]] = {}
    parts = {}
    for difference in differences:
        part, counts = _classes_of(model, difference)
        if counts is None or parts.setdefault(part, counts) != counts:
            return {}
        names.setdefault(counts, []).append(difference[0])
    return names


def _classes_of(
    model: nn.Module, difference: Difference
) -> tuple[str | None, tuple[int, int] | None]:
    """Returns the part that counts, and the classes of file and model if these differ."""
    name, in_file, in_model = difference
    for pattern, part, num_others in _CLASS_PREDICTORS:
        if not re.match(pattern, name):
            continue
        num_classes = in_model[0]
        if part is not None:
            num_classes = getattr(getattr(model, part) if part else model, "num_classes", 0)
        if not num_classes or not in_file or in_file[1:] != in_model[1:]:
            break
        outputs, rest = divmod(in_model[0] - num_others, num_classes)  # of a class
        classes = in_file[0] - num_others
        if rest or outputs <= 0 or classes <= 0 or classes % outputs:
            break
        return part, (classes // outputs, num_classes)
    return None, None
