"""Keeps less for the backward pass of parts of a model, which it then computes a second time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..config import ConfigError
from .models import is_enabled


def checkpoint_activations(cfg: DictConfig, model: nn.Module) -> None:
    """Wraps the parts that ``train.activation_checkpointing`` names; names and weights stay.

    Raises:
        ConfigError: A pattern matches no module, or parts of the model are compiled.
    """
    if not is_enabled(cfg, "activation_checkpointing"):
        return
    if is_enabled(cfg, "compile"):
        raise ConfigError(
            "train.compile and train.activation_checkpointing exclude each other: a compiler "
            "decides itself what to compute twice"
        )
    wrap_parts(model, cfg.train.activation_checkpointing.parts)


def wrap_parts(model: nn.Module, patterns: Sequence[str]) -> None:
    """Makes modules keep only their inputs for the backward pass.

    Args:
        model: The model; copies of it work as well.
        patterns: Names of modules, with ``*`` and ``?`` as in file names.

    Raises:
        ConfigError: A pattern matches no module.
    """
    modules = dict(model.named_modules())
    for pattern in patterns:
        names = [name for name in modules if name and fnmatchcase(name, pattern)]
        if not names:
            raise ConfigError(
                f"train.activation_checkpointing.parts has '{pattern}', which matches no module "
                f"of the model; its parts are {', '.join(x for x in modules if x.count('.') == 1)}"
            )
        for name in names:
            module = modules[name]
            # A partial of a bound method, which a deep copy binds to the copied module.
            module.forward = functools.partial(_checkpointed, module.forward)


def _checkpointed(forward: Callable[..., Any], *args: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args)
    while isinstance(forward, functools.partial):
        forward = forward.args[0]
    return checkpoint(
        forward,
        *args,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _kept_statistics(forward.__self__)),
    )


@contextlib.contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Within its context, running statistics are copies, as they have followed the batch once."""
    norms = [x for x in module.modules() if isinstance(x, nn.modules.batchnorm._NormBase)]
    before = [dict(x._buffers) for x in norms]
    for norm in norms:
        norm._buffers.update(
            {k: None if v is None else v.clone() for k, v in norm._buffers.items()}
        )
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before):
            norm._buffers.update(buffers)
