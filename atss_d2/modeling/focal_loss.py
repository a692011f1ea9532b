"""The sigmoid focal loss, without a one-hot target and with its gradient in the same pass.

Almost all targets are background: the background term is summed over all logits, and corrected at
the one positive logit of each positive anchor. The gradient of both is known in closed form, so the
forward pass leaves one buffer for the backward pass, and works through the logits in pieces that
stay in a CPU's cache.

Shapes: R anchors (of one image or of a whole batch), K classes, r anchors of a piece.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .precision import widen

# Logits of a piece on a CPU: three float32 buffers of this size fit in the cache of a core.
_CPU_PIECE = 2**17


def sigmoid_focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sum of the sigmoid focal loss ("Focal Loss for Dense Object Detection", Eq. 5).

    It can be differentiated once.

    Args:
        logits: (R, K) class logits; half precision is computed in float32.
        labels: (R,) int64; 0..K-1 foreground, K background, -1 left out.
        alpha: Weight of positives; negatives weigh ``1 - alpha``. Below 0 for no weighting.
        gamma: Exponent of the modulating factor, >= 0.

    Returns:
        Scalar in at least float32, the sum over all anchors and classes.

    Raises:
        ValueError: ``gamma`` is negative or the shapes do not fit each other.
    """
    if gamma < 0:
        raise ValueError(f"gamma must be >= 0, got {gamma}")
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits (R, K) and labels (R,), got {tuple(logits.shape)} "
            f"and {tuple(labels.shape)}"
        )
    return _SigmoidFocalLoss.apply(logits, labels, alpha, gamma)


class _SigmoidFocalLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
        positive_weight, negative_weight = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
        wide = torch.promote_types(logits.dtype, torch.float32)
        grad = None
        if ctx.needs_input_grad[0]:
            # float16 would lose what a gradient scaler, which comes later, is there to save.
            dtype = wide if logits.dtype == torch.float16 else logits.dtype
            grad = torch.empty_like(logits, dtype=dtype, memory_format=torch.contiguous_format)
        background = _add_background(logits, labels, gamma, negative_weight, grad)

        is_positive = (labels >= 0) & (labels < logits.shape[1])  # (R,)
        columns = torch.where(is_positive, labels, 0)[:, None]  # (R, 1)
        target = widen(logits.gather(1, columns))[:, 0]  # (R,)
        as_positive, positive_slope = _term(-target, gamma)
        as_background, _ = _term(target, gamma)
        correction = positive_weight * as_positive - negative_weight * as_background
        # Not times the mask: a logit that is left out may be infinite.
        loss = negative_weight * background + torch.where(is_positive, correction, 0.0).sum()
        if grad is not None:
            slope = (-positive_weight * positive_slope).to(grad.dtype)[:, None]
            grad.scatter_(1, columns, torch.where(is_positive[:, None], slope, grad[:, :1]))
            ctx.save_for_backward(grad)
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return (grad * grad_output).to(ctx.dtype), None, None, None


def _add_background(
    logits: Tensor, labels: Tensor, gamma: float, weight: float, grad: Tensor | None
) -> Tensor:
    """Sum of the background terms of all anchors that take part; fills their gradient (R, K)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    total = logits.new_zeros((), dtype=wide)
    num_anchors, num_classes = logits.shape
    is_on_cpu = logits.device.type == "cpu"
    size = max(1, _CPU_PIECE // max(num_classes, 1) if is_on_cpu else num_anchors)
    left_out = (labels < 0)[:, None]  # (R, 1)
    # On a CPU it costs nothing to look whether there are any.
    must_mask = not is_on_cpu or bool(left_out.any())
    buffers = torch.empty(3, min(size, num_anchors), num_classes, dtype=wide, device=logits.device)
    for start in range(0, num_anchors, size):
        rows = slice(start, start + size)
        x = widen(logits[rows])  # (r, K)
        if must_mask:  # a score of 0 costs nothing and has no gradient
            x = x.masked_fill(left_out[rows], -torch.inf)
        p, cross_entropy, factor = buffers[:, : len(x)]
        torch.sigmoid(x, out=p)
        torch.ops.aten.softplus.out(x, out=cross_entropy)
        if gamma == 2:
            torch.mul(p, p, out=factor)
        else:
            factor.copy_(_modulating_factor(x, gamma))
        total += torch.dot(factor.view(-1), cross_entropy.view(-1))
        if grad is not None:
            # p^gamma (gamma (1 - p) -log(1 - p) + p)
            slope = cross_entropy.addcmul_(cross_entropy, p, value=-1)
            slope.mul_(gamma * weight).add_(p, alpha=weight)
            if grad.dtype == wide:
                torch.mul(slope, factor, out=grad[rows])
            else:
                grad[rows] = slope.mul_(factor)
    return total


def _term(x: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """p^gamma * -log(1 - p) of p = sigmoid(x), a negative target, and its derivative."""
    p, cross_entropy, factor = x.sigmoid(), F.softplus(x), _modulating_factor(x, gamma)
    slope = factor * (gamma * (1 - p) * cross_entropy + p)
    return factor * cross_entropy, slope


def _modulating_factor(x: Tensor, gamma: float) -> Tensor:
    """sigmoid(x)^gamma, also where it is too small for a float before the power."""
    return (gamma * F.logsigmoid(x)).exp() if gamma else torch.ones_like(x)
