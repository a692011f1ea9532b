"""Detectron2's PreciseBN, in a form that a resumed run repeats."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from detectron2.engine import hooks
from fvcore.nn.precise_bn import get_bn_modules
from omegaconf import DictConfig
from torch import nn

from ..config import ConfigError
from ..modeling.criterion import Criterion
from .models import is_enabled
from .rng import RunSeed, preserved_rng
from .train_loader import instantiate_train_loader


class PreciseBN(hooks.PreciseBN):
    """Detectron2's hook with the same images every time, the first of the run.

    The state of the losses and the random states stay. Must be before the checkpointer.
    """

    @classmethod
    def from_config(cls, cfg: DictConfig, model: nn.Module, seed: RunSeed) -> PreciseBN | None:
        """Builds the hook of ``train.precise_bn``, before each evaluation; None if not enabled.

        Raises:
            ConfigError: The model has no BatchNorm that trains, or the weights are averaged.
        """
        if not is_enabled(cfg, "precise_bn"):
            return None
        num = cfg.train.precise_bn.num_iter
        if num < 1:
            raise ConfigError(f"train.precise_bn.num_iter must be >= 1, got {num}")
        if is_enabled(cfg, "ema"):
            raise ConfigError(
                "train.precise_bn and train.ema exclude each other: the averaged weights have "
                "averaged statistics"
            )
        if not get_bn_modules(model):
            raise ConfigError(
                "train.precise_bn is enabled, but the model has no BatchNorm that trains: set "
                "model.backbone.bottom_up.norm=BN, for example"
            )
        return cls(cfg.train.eval_period, model, _FirstBatches(cfg, seed), num)

    def update_stats(self) -> None:
        self._data_iter = None  # a resumed run must see the same images
        criteria = [x for x in self._model.modules() if isinstance(x, Criterion)]
        states = [copy.deepcopy(x.state_dict()) for x in criteria]
        with preserved_rng():
            super().update_stats()
        self._data_iter = None  # ends the loader's processes
        for criterion, state in zip(criteria, states):
            criterion.load_state_dict(state)


class _FirstBatches(Iterable):
    """The batches of the run from the first on, in every pass."""

    def __init__(self, cfg: DictConfig, seed: RunSeed) -> None:
        self._cfg = cfg
        self._seed = seed
        self._loader: Iterable[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._loader is None:  # only now, as a resumed run gets its seed late
            self._loader = instantiate_train_loader(
                self._cfg.dataloader.train, seed=self._seed.value
            )
        return iter(self._loader)
