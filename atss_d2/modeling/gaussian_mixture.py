"""Fits a mixture of two Gaussians to each row of a batch, by expectation maximization.

It computes what scikit-learn's ``GaussianMixture(2)`` does, for all rows at once and on the device.

Shapes: M rows, C places of a row.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Those of scikit-learn: a row has converged when an iteration changes its mean log-density by less
# than _TOLERANCE; _REGULARIZATION is added to variances.
_TOLERANCE, _MAX_ITERATIONS, _REGULARIZATION = 1e-3, 100, 1e-6
_LOG_2_PI = math.log(2 * math.pi)


class Mixture(NamedTuple):
    """Values under the mixture of their row.

    Attributes:
        is_low: (M, C) bool, whether a value more likely belongs to the component that started at
            the minimum of its row.
        log_density: (M, C) float64.
    """

    is_low: Tensor
    log_density: Tensor


@torch.no_grad()
def fit_two_gaussians(values: Tensor, mask: Tensor) -> Mixture:
    """Fits a mixture of two Gaussians to the values of each row, and evaluates it at them.

    The components start at the minimum and the maximum of the row, with weights of 0.5 and
    variances of 1. Everything is in float64. All rows iterate together: one that has converged
    keeps its mixture, so its result does not depend on other rows. On a CPU, converged rows leave
    the batch; on a GPU the host would wait to learn which, and there are always 100 iterations.

    Args:
        values: (M, C), finite where ``mask`` is true.
        mask: (M, C) bool, which places have a value. The result of a place without one has no
            meaning, as that of a row with fewer than two values.
    """
    # MPS has no float64.
    x = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
    low = x.masked_fill(~mask, torch.inf).amin(dim=1, keepdim=True)  # (M, 1), as all parameters
    high = x.masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    x = torch.where(mask, x, low.nan_to_num(posinf=0))
    rows = _Rows(x, mask.to(x), mask.sum(dim=1, keepdim=True).clamp(min=1).to(x))
    start = torch.stack((low, high)).nan_to_num(posinf=0, neginf=0)  # (2, M, 1)
    fit = _fit_on_cpu if x.device.type == "cpu" else _fit
    log_low, log_high = _log_probs(x, fit(rows, _Parameters.at(start)))
    return Mixture(log_low >= log_high, torch.logaddexp(log_low, log_high))


class _Rows(NamedTuple):
    """Values, 1 where there is one, and their number in a row: (M, C), (M, C), (M, 1)."""

    x: Tensor
    is_value: Tensor
    count: Tensor


class _Parameters(NamedTuple):
    """Means, variances and weights of the low and the high component: each (2, M, 1)."""

    means: Tensor
    variances: Tensor
    weights: Tensor

    @classmethod
    def at(cls, means: Tensor) -> _Parameters:
        return cls(means, torch.ones_like(means), torch.full_like(means, 0.5))


def _fit(rows: _Rows, parameters: _Parameters) -> _Parameters:
    """Iterates all rows equally often; those that have converged keep their parameters."""
    score = torch.full_like(rows.count, -torch.inf)
    is_active = torch.ones_like(rows.count, dtype=torch.bool)
    for _ in range(_MAX_ITERATIONS):
        updated, new_score = _iterate(rows, parameters)
        parameters = _Parameters(
            *(torch.where(is_active, new, old) for new, old in zip(updated, parameters))
        )
        is_active &= (new_score - score).abs() >= _TOLERANCE
        score = new_score
    return parameters


def _fit_on_cpu(rows: _Rows, parameters: _Parameters) -> _Parameters:
    """Works like :func:`_fit`, with only those rows that have not converged."""
    fitted = torch.stack(parameters)  # (3, 2, M, 1)
    idxs = torch.arange(len(rows.x))
    score = torch.full_like(rows.count, -torch.inf)
    for _ in range(_MAX_ITERATIONS):
        if not len(idxs):
            break
        parameters, new_score = _iterate(rows, parameters)
        is_active = ((new_score - score).abs() >= _TOLERANCE)[:, 0]
        score = new_score
        if is_active.all():
            continue
        fitted[:, :, idxs] = torch.stack(parameters)
        idxs, score = idxs[is_active], score[is_active]
        rows = _Rows(*(part[is_active] for part in rows))
        parameters = _Parameters(*(part[:, is_active] for part in parameters))
    fitted[:, :, idxs] = torch.stack(parameters)
    return _Parameters(*fitted)


def _iterate(rows: _Rows, parameters: _Parameters) -> tuple[_Parameters, Tensor]:
    """Returns the next parameters, and the mean log-density (M, 1) under the given ones."""
    log_probs = _log_probs(rows.x, parameters)  # (2, M, C)
    log_density = torch.logaddexp(*log_probs)
    score = (log_density * rows.is_value).sum(dim=1, keepdim=True) / rows.count
    shares = (log_probs - log_density).exp_().mul_(rows.is_value)
    totals = shares.sum(dim=2, keepdim=True) + 10 * torch.finfo(shares.dtype).eps
    means = (shares * rows.x).sum(dim=2, keepdim=True) / totals
    variances = (shares * (rows.x - means).square_()).sum(dim=2, keepdim=True) / totals
    weights = totals / totals.sum(dim=0)
    return _Parameters(means, variances + _REGULARIZATION, weights), score


def _log_probs(x: Tensor, parameters: _Parameters) -> Tensor:
    """Returns the logarithms (2, M, C) of weight x density of both components."""
    means, variances, weights = parameters
    constants = weights.log() - (variances.log() + _LOG_2_PI) / 2
    return torch.addcmul(constants, (x - means).square_(), variances.reciprocal(), value=-0.5)
