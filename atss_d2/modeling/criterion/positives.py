"""The positives of a batch, with what their losses use, and the normalizers of losses.

On a GPU, the host would have to wait to learn how many positives there are, so all anchors are
kept, and a mask marks the positives. On a CPU, the positives are picked out.

Shapes: N images, R anchors of an image, K classes, D values that the box coder takes, P anchors of
the batch that include all positives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor

from ..nouns import Predictions, Targets
from ..precision import widen

# Minimum of the number of positives, and of the sum of weights.
DEFAULT_FLOORS = (1, 1e-6)
_IS_LOCAL = ContextVar("is_local", default=False)  # see local_normalizers


class Positives(NamedTuple):
    """What losses of the positives use.

    Attributes:
        rows: Which of the N x R anchors these are: indices (P,) on a CPU, all on a GPU.
        mask: (P,) bool, which of them are positives.
        labels: (P,) int64 classes, of the positives.
        anchors: (P, 4) XYXY, pixels.
        boxes: (P, 4) the matched box, XYXY, pixels.
        regression: (P, D) in at least float32, 0 for all but the positives.
        quality: (P,) logits, likewise; None if the head predicts none.
        soft: (P,), see :class:`Targets`; None for a rule with hard labels only.
    """

    rows: Tensor | slice
    mask: Tensor
    labels: Tensor
    anchors: Tensor
    boxes: Tensor
    regression: Tensor
    quality: Tensor | None
    soft: Tensor | None


def find_positives(predictions: Predictions, targets: Targets, num_classes: int) -> Positives:
    """Picks out the positives of a batch, those of the box losses if they are others.

    Args:
        predictions: Predictions of the head.
        targets: Targets of its anchors.
        num_classes: K, the label of background.
    """
    labels = targets.labels_of_boxes.flatten()  # (N x R,)
    mask = is_positive(labels, num_classes)
    rows = positive_rows(mask)
    mask = mask[rows]
    regression = widen(torch.cat(predictions.regression, dim=1).flatten(0, 1)[rows])
    quality = None
    if predictions.quality is not None:
        quality = widen(torch.cat(predictions.quality, dim=1).flatten()[rows])
        quality = torch.where(mask, quality, 0.0)
    return Positives(
        rows,
        mask,
        labels[rows],
        targets.anchors.repeat(len(targets.labels), 1)[rows],
        targets.boxes.flatten(0, 1)[rows],
        # Weight 0 does not silence a background anchor whose box has overflowed: 0 x inf.
        torch.where(mask[:, None], regression, 0.0),
        quality,
        None if targets.soft is None else targets.soft.flatten()[rows],
    )


def is_positive(labels: Tensor, num_classes: int) -> Tensor:
    """Returns which labels (...) are positive: neither background nor ignored."""
    return (labels >= 0) & (labels != num_classes)


def count_with_floor(labels: Tensor, num_classes: int) -> Tensor:
    """Counts the positives, 0-dim; an image without any counts as one, as in mmdetection.

    Args:
        labels: (N, R), see :class:`Targets`.
        num_classes: K.
    """
    return is_positive(labels, num_classes).sum(dim=1).clamp(min=1).sum()


def positive_rows(is_positive: Tensor) -> Tensor | slice:
    """Returns the rows of (R, ...) tensors that box and centerness losses use.

    Args:
        is_positive: (R,) bool.

    Returns:
        Indices of the positives on a CPU; everything on a GPU.
    """
    if is_positive.device.type == "cpu":
        return is_positive.nonzero()[:, 0]
    return slice(None)


def loss_normalizers(
    *totals: Tensor, floors: Sequence[float] = DEFAULT_FLOORS
) -> tuple[Tensor, ...]:
    """Averages the normalizers of losses over all processes, with one all-reduce.

    Dividing each process's summed loss by the averages makes DDP's mean gradient equal to that of
    one process with the whole batch. Floors apply to the totals, so that this also holds for
    batches with one positive or none.

    Args:
        *totals: 0-dim, of this process. ATSS has two: the number of positives, and the sum of the
            weights of their box losses.
        floors: Minimum of each total over all processes: by default 1 for the number, and a tiny
            value for the sum of weights (whose numerator vanishes with it).

    Returns:
        The normalizers, 0-dim float32, equal on every process and positive.
    """
    sums = torch.stack([total.float() for total in totals])
    world_size = num_processes()
    if world_size > 1:  # never depends on the data: a process without boxes takes part
        torch.distributed.all_reduce(sums)
    return tuple(
        total.clamp(min=floor) / world_size
        for total, floor in zip(sums.unbind(), floors, strict=True)
    )


def num_processes() -> int:
    """Returns the number of processes that :func:`loss_normalizers` averages over."""
    return 1 if _IS_LOCAL.get() else comm.get_world_size()


@contextlib.contextmanager
def local_normalizers() -> Iterator[None]:
    """Within its context, losses are normalized by this process alone, without messages."""
    token = _IS_LOCAL.set(True)
    try:
        yield
    finally:
        _IS_LOCAL.reset(token)
