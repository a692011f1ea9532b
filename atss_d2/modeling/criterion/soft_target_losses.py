"""Classification losses whose target at a positive's class is a quality y in [0, 1].

All other targets are 0, so they are sums of :func:`.focal_loss.loss_with_background`.

Shapes: R anchors (of one image or of a whole batch), K classes, P anchors that include all
positives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import widen
from .focal_loss import background_term, loss_with_background


def quality_focal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, *, gamma: float = 2.0
) -> Tensor:
    """Computes |y - p|^gamma BCE(p, y), summed (GFL, arXiv 2006.04388, Eq. 2; its beta is gamma).

    Like all losses here, it can be differentiated once, and gives no gradient to the quality.

    Args:
        logits: (R, K) class logits; half precision is computed in float32.
        labels: (R,) int64; 0..K-1 foreground, K background, -1 ignored.
        quality: (R,) the target y of each positive; other rows are not used.
        gamma: Exponent of the modulating factor, >= 0.

    Returns:
        Scalar in at least float32, the sum over all anchors and classes.
    """
    return _loss(logits, labels, quality, gamma, 1.0, functools.partial(_quality_term, gamma=gamma))


def varifocal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, *, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Computes y BCE(p, y) of positives and alpha p^gamma BCE(p, 0) elsewhere, summed.

    This is VFNet's loss (arXiv 2008.13367, Eq. 2). Positives are not modulated by |y - p|; one
    with y = 0 counts as background.

    Args:
        logits: See :func:`quality_focal_loss`, as for the next two.
        labels: See there.
        quality: See there.
        alpha: Weight of the background, > 0.
        gamma: Exponent of the background's modulating factor, >= 0.
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be > 0, got {alpha}")
    term = functools.partial(_varifocal_term, alpha=alpha, gamma=gamma)
    return _loss(logits, labels, quality, gamma, alpha, term)


def matchability_aware_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, *, gamma: float = 1.5
) -> Tensor:
    """Computes BCE(p, y^gamma) of positives and p^gamma BCE(p, 0) elsewhere, summed.

    This is DEIM's loss (arXiv 2412.04234, Eq. 3).

    Args:
        logits: See :func:`quality_focal_loss`, as for the next two.
        labels: See there.
        quality: See there.
        gamma: Exponent of the target and of the background's modulating factor, >= 0.
    """
    term = functools.partial(_matchability_term, gamma=gamma)
    return _loss(logits, labels, quality, gamma, 1.0, term)


def _quality_term(x: Tensor, y: Tensor, *, gamma: float) -> Tensor:
    # A power below 1 has an infinite slope at 0, which would become NaN.
    distance = (x.sigmoid() - y).abs().clamp(min=torch.finfo(x.dtype).tiny)
    return distance.pow(gamma) * _cross_entropy(x, y)


def _varifocal_term(x: Tensor, y: Tensor, *, alpha: float, gamma: float) -> Tensor:
    background = alpha * background_term(x, gamma)[0]
    return torch.where(y > 0, y * _cross_entropy(x, y), background)


def _matchability_term(x: Tensor, y: Tensor, *, gamma: float) -> Tensor:
    return _cross_entropy(x, y**gamma)


def _cross_entropy(x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, y, reduction="none")


# The loss (P,) of the logits (P,) of positives with the targets (P,).
_Term = Callable[[Tensor, Tensor], Tensor]


def _loss(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor,
    gamma: float,
    background_weight: float,
    term: _Term,
) -> Tensor:
    if gamma < 0:
        raise ValueError(f"gamma must be >= 0, got {gamma}")
    if logits.dim() != 2 or not labels.shape == quality.shape == logits.shape[:1]:
        raise ValueError(
            f"expected logits (R, K), labels (R,) and quality (R,), got {tuple(logits.shape)}, "
            f"{tuple(labels.shape)} and {tuple(quality.shape)}"
        )
    quality = quality.detach()
    if torch.compiler.is_compiling():
        return _by_definition(logits, labels, quality, gamma, background_weight, term)

    def positive_term(x: Tensor, rows: Tensor, unit: float | None) -> tuple[Tensor, Tensor | None]:
        y = quality[rows].to(x)
        if unit is None:
            return term(x, y), None
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = term(x, y)
            (slope,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach(), slope / unit

    return loss_with_background(logits, labels, gamma, background_weight, positive_term)


def _by_definition(
    logits: Tensor,
    labels: Tensor,
    quality: Tensor,
    gamma: float,
    background_weight: float,
    term: _Term,
) -> Tensor:
    """Computes the loss for a compiler, which makes one kernel of it and one of its gradient."""
    labels = labels[:, None]  # (R, 1)
    is_positive = labels == torch.arange(logits.shape[1], device=logits.device)  # (R, K)
    x = widen(logits).masked_fill(labels < 0, -torch.inf)
    as_background = background_weight * background_term(x, gamma)[0]
    as_positive = term(torch.where(is_positive, x, 0.0), quality.to(x)[:, None].expand_as(x))
    return torch.where(is_positive, as_positive, as_background).sum()
