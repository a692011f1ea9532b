"""Runs all parts of a training for a few iterations, in a folder of its own."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ..config import ConfigError

logger = logging.getLogger(__name__)

SUFFIX = "_fast_dev_run"


def apply_fast_dev_run(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Shortens the run if ``train.fast_dev_run`` is a number of iterations.

    It evaluates twice, saves a checkpoint each time, and logs every iteration. Early stopping,
    which needs more evaluations, is left out.

    Args:
        cfg: The config; it is changed.
        args: The command line; such a run is never resumed, and overwrites the one before.

    Raises:
        ConfigError: The number is negative or 1.
    """
    num = num_iterations(cfg)
    if not num or args.eval_only:
        return
    if num < 2:
        raise ConfigError(f"train.fast_dev_run must be at least 2 iterations, or 0, got {num}")
    train = cfg.train
    if not train.output_dir.endswith(SUFFIX):
        train.output_dir = train.output_dir.rstrip("/") + SUFFIX
    train.max_iter, train.log_period, train.eval_period = num, 1, -(-num // 2)
    train.checkpointer.period = train.eval_period
    if "early_stopping" in train:
        train.early_stopping.enabled = False
    if "profiler" in train:
        train.profiler.update(wait=0, warmup=1, active=1)
    if "precise_bn" in train:
        train.precise_bn.num_iter = 2
    generator = cfg.model.get("proposal_generator") or {}
    matcher = cfg.model.get("matcher") or generator.get("anchor_matcher") or {}
    if "warm_up_iterations" in matcher:  # the rule after it runs, too
        matcher.warm_up_iterations = min(matcher.warm_up_iterations, num // 2)
    args.resume, args.overwrite = False, True


def num_iterations(cfg: DictConfig) -> int:
    """Returns ``train.fast_dev_run``; 0 if it is off."""
    return int(cfg.train.get("fast_dev_run", 0))


def shortened(cfg: DictConfig, loader: Iterable[Any]) -> Iterable[Any]:
    """Returns a test loader that ends after ``train.fast_dev_run`` batches, if that is set."""
    num = num_iterations(cfg)
    return _FirstBatches(loader, num) if num else loader


def finish(cfg: DictConfig) -> None:
    """Says that all went well, and removes the checkpoints, as nobody needs them."""
    if not num_iterations(cfg):
        return
    folder = Path(cfg.train.output_dir)
    files = [*folder.glob("*.pth"), *folder.glob("last_checkpoint")]
    size = sum(path.stat().st_size for path in files)
    for path in files:
        path.unlink()
    logger.info(
        f"train.fast_dev_run: {cfg.train.max_iter} iterations, checkpoints ({size / 1e6:.0f} MB, "
        f"removed) and evaluations went well; the log is in {folder}"
    )


class _FirstBatches:
    """The first batches of a loader; a COCO evaluation counts the other images as missed."""

    def __init__(self, loader: Iterable[Any], num: int) -> None:
        self._loader = loader
        self._num = min(num, len(loader))

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[Any]:
        for _, batch in zip(range(self._num), self._loader):
            yield batch
