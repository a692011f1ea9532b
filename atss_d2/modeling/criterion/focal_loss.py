"""The sigmoid focal loss, without a one-hot target and with its gradient in the same pass.

Almost all targets are background: the background term is summed over all logits, and corrected at
the one positive logit of each positive anchor. The gradient of both is known in closed form, so the
forward pass stores only one buffer for the backward pass, and processes the logits in pieces that
fit into a CPU's cache.

Shapes: R anchors (of one image or of a whole batch), K classes, r anchors of a piece, P anchors
that include all positives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..precision import widen

# Logits per piece: on a CPU its buffers fit into the cache; on a GPU it bounds the memory.
_CPU_PIECE, _GPU_PIECE = 2**17, 2**24


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Computes the sigmoid focal loss, summed ("Focal Loss for Dense Object Detection", Eq. 5).

    It can be differentiated once.

    Args:
        logits: (R, K) class logits; half precision is computed in float32.
        labels: (R,) int64; 0..K-1 foreground, K background, -1 ignored.
        alpha: Weight of positives; negatives have the weight ``1 - alpha``. Below 0: no weighting.
        gamma: Exponent of the modulating factor, >= 0.

    Returns:
        Scalar in at least float32, the sum over all anchors and classes.

    Raises:
        ValueError: ``gamma`` is negative, or the shapes do not match.
    """
    if gamma < 0:
        raise ValueError(f"gamma must be >= 0, got {gamma}")
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits (R, K) and labels (R,), got {tuple(logits.shape)} "
            f"and {tuple(labels.shape)}"
        )
    weights = (float(alpha), float(1 - alpha)) if alpha >= 0 else (1.0, 1.0)
    if torch.compiler.is_compiling():
        return _by_definition(logits, labels, *weights, gamma)
    positive_weight, negative_weight = weights

    def positive_term(x: Tensor, _: Tensor, unit: float | None) -> tuple[Tensor, Tensor | None]:
        term, slope = background_term(-x, gamma)
        return positive_weight * term, None if unit is None else -positive_weight / unit * slope

    return loss_with_background(logits, labels, gamma, negative_weight, positive_term)


def _by_definition(
    logits: Tensor, labels: Tensor, positive_weight: float, negative_weight: float, gamma: float
) -> Tensor:
    """Computes the loss for a compiler, which makes one kernel of it and one of its gradient."""
    labels = labels[:, None]  # (R, 1)
    is_positive = labels == torch.arange(logits.shape[1], device=logits.device)  # (R, K)
    x = widen(logits).masked_fill(labels < 0, -torch.inf)
    term, _ = background_term(torch.where(is_positive, -x, x), gamma)
    return (torch.where(is_positive, positive_weight, negative_weight) * term).sum()


# Takes logits (P,) of positives, their rows (P,), and a unit, or None if no gradient is needed.
# Returns the loss (P,) and, in this unit, its derivative (P,).
PositiveTerm = Callable[[Tensor, Tensor, float | None], tuple[Tensor, Tensor | None]]


def loss_with_background(
    logits: Tensor,
    labels: Tensor,
    gamma: float,
    background_weight: float,
    positive_term: PositiveTerm,
) -> Tensor:
    """Sums p^gamma * -log(1 - p) over all logits but one of each positive, which has its own term.

    Args:
        logits: (R, K).
        labels: (R,), see :func:`sigmoid_focal_loss`.
        gamma: Exponent of the modulating factor of the background.
        background_weight: Weight of the background.
        positive_term: See :data:`PositiveTerm`.
    """
    arguments = (logits, labels, gamma, background_weight, positive_term)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _LossWithBackground.apply(*arguments)
    return _fast_loss(*arguments, grad=None)


class _LossWithBackground(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        labels: Tensor,
        gamma: float,
        background_weight: float,
        positive_term: PositiveTerm,
    ) -> Tensor:
        # float16 would underflow here, before a gradient scaler can prevent it.
        dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        grad = torch.empty_like(logits, dtype=dtype, memory_format=torch.contiguous_format)
        loss = _fast_loss(logits, labels, gamma, background_weight, positive_term, grad)
        ctx.save_for_backward(grad)
        ctx.unit, ctx.dtype = _unit(background_weight), logits.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return (grad * (grad_output * ctx.unit)).to(ctx.dtype), None, None, None, None


def _unit(background_weight: float) -> float:
    """Returns the unit of the stored gradient: the weight of the background, or 1 if that is 0."""
    return background_weight or 1.0


def _fast_loss(
    logits: Tensor,
    labels: Tensor,
    gamma: float,
    background_weight: float,
    positive_term: PositiveTerm,
    grad: Tensor | None,
) -> Tensor:
    """Computes the loss and fills ``grad`` (R, K) with its gradient, in units of :func:`_unit`."""
    background = _sum_background(logits, labels, gamma, grad)
    if grad is not None and not background_weight:
        grad.zero_()

    rows, is_positive, columns = _positive_logits(labels, logits.shape[1])
    target = widen(logits[rows, columns])
    unit = None if grad is None else _unit(background_weight)
    as_positive, slope = positive_term(target, rows, unit)
    as_background, _ = background_term(target, gamma)
    correction = as_positive - background_weight * as_background
    if grad is not None:
        slope = slope.to(grad.dtype)
        grad[rows, columns] = torch.where(is_positive, slope, grad[rows, columns])
    # Not multiplied by the mask: an ignored logit may be infinite.
    return background_weight * background + torch.where(is_positive, correction, 0.0).sum()


def _positive_logits(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns where the logits of positives are.

    Args:
        labels: (R,), see :func:`sigmoid_focal_loss`.
        num_classes: K.

    Returns:
        rows (P,), whether they are positives (P,), and columns (P,). On a CPU all are; on a GPU,
        where the host would wait for their number, P is R.
    """
    is_positive = (labels >= 0) & (labels < num_classes)  # (R,)
    if _is_on_cpu(labels):
        rows = is_positive.nonzero()[:, 0]
    else:
        rows = torch.arange(len(labels), device=labels.device)
    is_positive = is_positive[rows]  # (P,)
    return rows, is_positive, torch.where(is_positive, labels[rows], 0)


def background_term(x: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Computes p^gamma * -log(1 - p), p = sigmoid(x), of negatives, and its derivative."""
    p, cross_entropy = x.sigmoid(), F.softplus(x)
    # Not `p ** gamma`, whose gradient is NaN at p = 0.
    factor = (gamma * F.logsigmoid(x)).exp() if gamma else torch.ones_like(x)
    return factor * cross_entropy, factor * (gamma * (1 - p) * cross_entropy + p)


def _sum_background(logits: Tensor, labels: Tensor, gamma: float, grad: Tensor | None) -> Tensor:
    """Sums the terms of all logits of anchors not ignored; writes their derivatives to ``grad``.

    The formulas are those of :func:`background_term`, with the fewest and fastest operations and
    without new tensors.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    smallest = torch.finfo(wide).tiny
    num_anchors, num_classes = logits.shape
    size = max(1, (_CPU_PIECE if _is_on_cpu(logits) else _GPU_PIECE) // max(num_classes, 1))
    left_out = (labels < 0)[:, None]  # (R, 1)
    # On a CPU it costs nothing to check whether there are any.
    must_mask = not _is_on_cpu(logits) or bool(left_out.any())
    buffers = logits.new_empty((5, min(size, num_anchors), num_classes), dtype=wide)
    total = logits.new_zeros((), dtype=wide)
    for start in range(0, num_anchors, size):
        x = logits[start : start + size]  # (r, K)
        own_x, p, q, log_q, other = buffers[:, : len(x)]
        if must_mask or x.dtype != wide:
            x = own_x.copy_(x)
        if must_mask:  # a score of 0 has neither loss nor derivative
            x.masked_fill_(left_out[start : start + size], -torch.inf)

        # p, q = 1 - p and log(q), each accurate to the last digits. Where p is small, q is near 1
        # and has lost digits of p: log(q) is corrected by q - 1 + p. Where q is 0, log(q) is -x.
        torch.sigmoid(x, out=p)
        minus_x = torch.neg(x, out=other)
        torch.sigmoid(minus_x, out=q)
        torch.clamp(q, min=smallest, out=log_q).log_()
        torch.minimum(log_q, minus_x, out=log_q)
        log_q.sub_(torch.sub(q, 1, out=other).add_(p))

        factor = torch.mul(p, p, out=other) if gamma == 2 else torch.pow(p, gamma, out=other)
        total -= torch.dot(factor.flatten(), log_q.flatten())
        if grad is not None:  # p^gamma (p - gamma q log(q))
            slope = p.addcmul_(q, log_q, value=-gamma)
            out = grad[start : start + size]
            if out.dtype == wide:
                torch.mul(slope, factor, out=out)
            else:
                out.copy_(slope.mul_(factor))
    return total


def _is_on_cpu(x: Tensor) -> bool:
    """Returns whether the host can read values without waiting for a device."""
    return x.device.type == "cpu"
