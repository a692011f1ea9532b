"""Freezes parameters, or scales their learning rate, by patterns of their names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ..config import ConfigError

logger = logging.getLogger(__name__)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes the parameters that match ``train.freeze``.

    Norms all of whose parameters are frozen use their running statistics, and keep them. Call it
    before the optimizer is built.

    Args:
        model: The model.
        patterns: Names of parameters or modules, with ``*``, ``?`` and ``[...]`` as in file names.

    Raises:
        ConfigError: A pattern matches nothing, or nothing is left to train.
    """
    names = _matches(model, patterns, "train.freeze")
    if not names:
        return
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad = False
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trained:
        raise ConfigError(f"train.freeze={list(patterns)} leaves no parameter to train")
    for prefix, module in model.named_modules():
        own = [f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)]
        if isinstance(module, nn.modules.batchnorm._NormBase) and own and names.issuperset(own):
            module.register_forward_pre_hook(_evaluate)
    logger.info(
        f"train.freeze: {len(names)} tensors are frozen, {trained / 1e6:.1f} M parameters train"
    )


def _evaluate(module: nn.Module, _: Any) -> None:
    module.training = False  # which model.train() sets again


def scale_rates(
    optimizer: torch.optim.Optimizer, model: nn.Module, factors: Sequence[tuple[str, float]]
) -> None:
    """Multiplies the learning rates of parameters that match ``train.lr_factors``.

    Unlike an ``lr_factor_func`` of Detectron2, also those of biases that have a rate of their own.

    Args:
        optimizer: An optimizer that has not stepped; groups with several factors are split.
        model: The model.
        factors: Pairs of a pattern, as in :func:`freeze`, and a factor; of several that match, the
            last counts.

    Raises:
        ConfigError: A pattern matches nothing, or it is not a list of such pairs.
    """
    of_names: dict[str, float] = {}
    for pair in factors:
        try:
            pattern, factor = pair
        except (TypeError, ValueError):
            pattern, factor = "", None
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if not isinstance(pattern, str) or not is_number or not factor > 0:
            raise ConfigError(
                f"train.lr_factors has {pair}, which is not a pair of a pattern of names and a "
                "factor > 0, such as [backbone.bottom_up, 0.1]; train.freeze takes what must not "
                "learn"
            )
        matches = _matches(model, [pattern], "train.lr_factors")
        of_names |= dict.fromkeys(matches, factor)
    if not of_names:
        return
    of_parameters = {p: of_names.get(name, 1.0) for name, p in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        parts: dict[float, list] = {}
        for parameter in group["params"]:
            parts.setdefault(of_parameters.get(parameter, 1.0), []).append(parameter)
        groups += [
            {**group, "params": params, "lr": group["lr"] * factor}
            for factor, params in parts.items()
        ]
    optimizer.param_groups[:] = groups
    rates = sorted({group["lr"] for group in groups})
    logger.info(f"train.lr_factors: learning rates are {', '.join(f'{x:g}' for x in rates)}")


def _matches(model: nn.Module, patterns: Sequence[str], key: str) -> set[str]:
    """Returns the names of the parameters that match any of the patterns."""
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for pattern in patterns:
        # A module's name stands for everything in it.
        new = {x for x in names if fnmatchcase(x, pattern) or fnmatchcase(x, f"{pattern}.*")}
        if not new:
            parts = dict.fromkeys(".".join(x.split(".")[:2]) for x in names)
            raise ConfigError(
                f"{key} has '{pattern}', which matches no parameter of the model; its parts are "
                f"{', '.join(parts)}"
            )
        found |= new
    return found
