"""Selects the pairs of anchor and class that may become detections, by threshold and top-k.

Shapes: N images, Ri anchors of level i, K classes, T selected pre-NMS detections.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

NO_SCORE = -1.0
# Sigmoid is monotone: logits are compared with a bound below the logit of the score threshold, and
# only those that pass get a score. The bound leaves room for the rounding of scores to float32.
_SCORE_SLACK, _LOGIT_SLACK = 1e-6, 1e-3

SCORE_TYPES = ("sqrt", "product")
RANKINGS = ("score", "class_score")  # also what a threshold applies to


def select_pre_nms(
    logits: Tensor, quality: Tensor | None, *args, **kwargs
) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the best pre-NMS detections of one level, in the way that is fastest on the device.

    On a CPU, scores are computed only for the few logits above the threshold, which makes
    post-processing of 80 classes 2 to 5 times as fast; on a GPU the host would wait for their
    number. Arguments and results are those of :func:`select_fixed_number`, but on a CPU, T is the
    largest number of pre-NMS detections in an image.
    """
    if logits.device.type != "cpu":
        return select_fixed_number(logits, quality, *args, **kwargs)
    qualities = [None] * len(logits) if quality is None else quality
    of_images = [select_survivors(*image, *args, **kwargs) for image in zip(logits, qualities)]
    scores, anchor_idxs, classes = zip(*of_images)
    return (
        pad_sequence(scores, batch_first=True, padding_value=NO_SCORE),
        pad_sequence(anchor_idxs, batch_first=True),
        pad_sequence(classes, batch_first=True),
    )


def select_survivors(
    logits: Tensor,
    quality: Tensor | None,
    score_thresh: float,
    topk_candidates: int,
    score_type: str = "sqrt",
    rank_by: str = "score",
    thresh_on: str = "class_score",
) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the pre-NMS detections of one image; their number T varies.

    Args:
        logits: (Ri, K).
        quality: (Ri,) or None.
        score_thresh: See :func:`select_fixed_number`, as for the rest.

    Returns:
        scores (T,), anchor indices (T,) and classes (T,), best first as ``rank_by`` says.
    """
    on_score = quality is not None and thresh_on == "score"
    least = score_thresh
    if on_score and score_type == "sqrt":
        least = max(score_thresh, 0.0) ** 2  # sqrt(p q) > t needs p > t^2, as q <= 1
    anchor_idxs, classes = (logits >= _min_logit(least, logits.dtype)).nonzero().unbind(dim=1)
    # Scores of half-precision logits would be rounded to three digits, and NMS refuses them.
    scores = compared = logits[anchor_idxs, classes].float().sigmoid()
    if on_score:
        compared = _with_quality(scores, quality[anchor_idxs], score_type)
    is_above = compared > score_thresh
    scores, anchor_idxs, classes = scores[is_above], anchor_idxs[is_above], classes[is_above]
    if quality is not None and rank_by == "score":
        scores = _with_quality(scores, quality[anchor_idxs], score_type)
    scores, order = scores.topk(_at_most(topk_candidates, scores.shape[0]))
    anchor_idxs, classes = anchor_idxs[order], classes[order]
    if quality is not None and rank_by == "class_score":
        scores = _with_quality(scores, quality[anchor_idxs], score_type)
    return scores, anchor_idxs, classes


def select_fixed_number(
    logits: Tensor,
    quality: Tensor | None,
    score_thresh: float,
    topk_candidates: int,
    score_type: str = "sqrt",
    rank_by: str = "score",
    thresh_on: str = "class_score",
    fill: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the best pre-NMS detections of one level, without a shape that depends on a value.

    Args:
        logits: (N, Ri, K) class logits, or (Ri, K) of one image.
        quality: (N, Ri) logits of a second score, or None.
        score_thresh: Minimum class score, without the quality; or minimum score, see ``thresh_on``.
        topk_candidates: T; without ``fill``, T is smaller if the level has fewer pairs.
        score_type: See :func:`postprocess`.
        rank_by: See :func:`postprocess`.
        thresh_on: What ``score_thresh`` applies to, "class_score" or "score".
        fill: Whether T is ``topk_candidates`` even on a small level, and so the same for images of
            all sizes.

    Returns:
        scores (N, T), anchor indices (N, T) and classes (N, T), best first as ``rank_by`` says.
        Empty places come last and have :data:`NO_SCORE`.
    """
    scores = compared = logits.float().sigmoid()  # (N, Ri, K)
    if quality is not None and "score" in (rank_by, thresh_on):
        final = _with_quality(scores, quality[..., None], score_type)
        compared = final if thresh_on == "score" else scores
        scores = final if rank_by == "score" else scores
    scores = torch.where(compared > score_thresh, scores, NO_SCORE).flatten(-2)
    if fill:
        scores = F.pad(scores, (0, topk_candidates), value=NO_SCORE)
    scores, idxs = scores.topk(
        topk_candidates if fill else _at_most(topk_candidates, scores.shape[-1])
    )
    if fill:
        idxs = torch.where(scores > NO_SCORE, idxs, 0)  # not a place in the padding
    anchor_idxs, classes = split_pairs(idxs, logits.shape[-1])
    if quality is not None and rank_by == "class_score":
        final = _with_quality(scores, quality.gather(-1, anchor_idxs), score_type)
        scores = torch.where(scores > NO_SCORE, final, NO_SCORE)
    return scores, anchor_idxs, classes


def split_pairs(idxs: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns anchor and class of the pairs with these indices into (R x K)."""
    # Not div(rounding_mode="floor"): ONNX's exporter turns it into a division of float32 numbers,
    # which gives the next anchor from about 10^5 anchors on.
    return idxs // num_classes, idxs % num_classes


def _with_quality(class_scores: Tensor, quality: Tensor, score_type: str) -> Tensor:
    """Computes scores of detections from class scores and quality logits of the same anchors."""
    scores = class_scores * quality.float().sigmoid()
    return scores.sqrt() if score_type == "sqrt" else scores


def _min_logit(score_thresh: float, dtype: torch.dtype) -> float:
    """Returns a bound that every logit of this type reaches if its score is above the threshold."""
    if score_thresh < torch.finfo(torch.float32).tiny:
        return -math.inf
    if score_thresh >= 1:
        return math.inf
    score = score_thresh * (1 - _SCORE_SLACK)
    logit = math.log(score / (1 - score)) - _LOGIT_SLACK
    # The comparison rounds it to the type of the logits.
    return logit - abs(logit) * torch.finfo(dtype).eps


def _at_most(limit: int, size: int | Tensor) -> int | Tensor:
    # While a model is traced, a size is a tensor, and the trace must not keep its value.
    return size.clamp(max=limit) if isinstance(size, Tensor) else min(limit, size)
