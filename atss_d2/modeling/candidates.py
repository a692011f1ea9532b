"""Which pairs of anchor and class of a level may become detections: threshold and top-k.

Shapes: Ri anchors of level i, K classes, T selected candidates.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .choices import check_choice

NO_SCORE = -1.0
# Sigmoid is monotone: logits are compared with a bound below the logit of the score threshold, and
# only what is left gets a score. The bound leaves room for the rounding of scores to float32.
_SCORE_SLACK, _LOGIT_SLACK = 1e-6, 1e-3

SCORE_TYPES = ("sqrt", "product")
RANKINGS = ("score", "class_score")


def check_score_options(score_type: str, rank_by: str) -> None:
    """Checks two arguments of :func:`select_candidates`; raises a ValueError."""
    check_choice("score_type", score_type, SCORE_TYPES)
    check_choice("rank_by", rank_by, RANKINGS)


def select_candidates(
    logits: Tensor,
    centerness: Tensor | None,
    *,
    score_thresh: float,
    topk_candidates: int,
    score_type: str = "sqrt",
    rank_by: str = "score",
) -> tuple[Tensor, Tensor, Tensor]:
    """The best candidates of one level.

    Args:
        logits: (Ri, K) class logits.
        centerness: (Ri,) centerness logits, or None.
        score_thresh: Least class score, before centerness.
        topk_candidates: Most candidates to return.
        score_type: See :func:`postprocess`.
        rank_by: See :func:`postprocess`.

    Returns:
        scores (T,), anchor indices (T,) and classes (T,), best first as ``rank_by`` says. On a GPU
        there are always ``topk_candidates`` if the level has so many, the last ones with
        :data:`NO_SCORE`.
    """
    select = select_survivors if logits.device.type == "cpu" else select_fixed_number
    return select(logits, centerness, score_thresh, topk_candidates, score_type, rank_by)


def select_survivors(
    logits: Tensor,
    centerness: Tensor | None,
    score_thresh: float,
    topk_candidates: int,
    score_type: str = "sqrt",
    rank_by: str = "score",
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes scores only where they matter; on a GPU the host would wait for their number."""
    anchor_idxs, classes = (
        (logits >= _min_logit(score_thresh, logits.dtype)).nonzero().unbind(dim=1)
    )
    # Scores of half-precision logits would be rounded to three digits, and NMS refuses them.
    scores = logits[anchor_idxs, classes].float().sigmoid()
    is_above = scores > score_thresh
    scores, anchor_idxs, classes = scores[is_above], anchor_idxs[is_above], classes[is_above]
    if centerness is not None and rank_by == "score":
        scores = _with_centerness(scores, centerness[anchor_idxs], score_type)
    scores, order = scores.topk(_at_most(topk_candidates, scores.shape[0]))
    anchor_idxs, classes = anchor_idxs[order], classes[order]
    if centerness is not None and rank_by == "class_score":
        scores = _with_centerness(scores, centerness[anchor_idxs], score_type)
    return scores, anchor_idxs, classes


def select_fixed_number(
    logits: Tensor,
    centerness: Tensor | None,
    score_thresh: float,
    topk_candidates: int,
    score_type: str = "sqrt",
    rank_by: str = "score",
    fill: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without a wait: the places of missing candidates have :data:`NO_SCORE`.

    Also for a batch: logits (..., Ri, K), centerness (..., Ri). With ``fill`` there are
    ``topk_candidates`` places even if the level has fewer pairs: their number is then the same for
    images of all sizes.
    """
    scores = class_scores = logits.float().sigmoid()  # (..., Ri, K)
    if centerness is not None and rank_by == "score":
        scores = _with_centerness(class_scores, centerness[..., None], score_type)
    scores = torch.where(class_scores > score_thresh, scores, NO_SCORE).flatten(-2)
    if fill:
        scores = F.pad(scores, (0, topk_candidates), value=NO_SCORE)
    scores, idxs = scores.topk(topk_candidates if fill else min(topk_candidates, scores.shape[-1]))
    if fill:
        idxs = torch.where(scores > NO_SCORE, idxs, 0)  # not of a place in the padding
    anchor_idxs, classes = split_pairs(idxs, logits.shape[-1])
    if centerness is not None and rank_by == "class_score":
        final = _with_centerness(scores, centerness.gather(-1, anchor_idxs), score_type)
        scores = torch.where(scores > NO_SCORE, final, NO_SCORE)
    return scores, anchor_idxs, classes


def split_pairs(idxs: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Anchor and class of the pairs with these indices into (R x K)."""
    # Not div(rounding_mode="floor"): ONNX's exporter makes it a division of float32 numbers, which
    # gives the next anchor from some 10^5 of them on.
    return idxs // num_classes, idxs % num_classes


def _with_centerness(class_scores: Tensor, centerness: Tensor, score_type: str) -> Tensor:
    """Scores of detections from class scores and the centerness logits of the same anchors."""
    scores = class_scores * centerness.float().sigmoid()
    return scores.sqrt() if score_type == "sqrt" else scores


def _min_logit(score_thresh: float, dtype: torch.dtype) -> float:
    """A bound that every logit of this type with a score above the threshold reaches."""
    if score_thresh < torch.finfo(torch.float32).tiny:
        return -math.inf
    if score_thresh >= 1:
        return math.inf
    score = score_thresh * (1 - _SCORE_SLACK)
    logit = math.log(score / (1 - score)) - _LOGIT_SLACK
    # It is rounded to the type of the logits when they are compared.
    return logit - abs(logit) * torch.finfo(dtype).eps


def _at_most(limit: int, size: int | Tensor) -> int | Tensor:
    # While a model is traced a size is a tensor, and the trace must not keep its value.
    return size.clamp(max=limit) if isinstance(size, Tensor) else min(limit, size)
