"""Trains a LazyConfig with Detectron2's trainer and hooks."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase, create_ddp_model, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, ListConfig
from torch import nn

from ..checkpoint import SafeCheckpointer
from ..config import ConfigError, view_of
from .activation_checkpointing import checkpoint_activations
from .amp import GradScaler
from .bad_images import BadImages
from .console import FILE_ONLY, ProgressPrinter, quiet_evaluation
from .data_check import check_categories, explained
from .dataset_checks import check_data
from .determinism import check_determinism, use_determinism
from .early_stopping import EarlyStopping, StoppedEarly
from .ema import EMAHook
from .evaluation_hooks import BaseLRScheduler, BestCheckpoint, TimedEvalHook
from .gradient_clipping import GradientClippingHook
from .metrics import ContinuedMetrics
from .models import (
    autocast_dtype,
    build_model,
    check_device,
    check_warm_up,
    is_enabled,
)
from .nonfinite import StepRecorder
from .parameter_names import freeze, scale_rates
from .periodic_checkpointer import PeriodicCheckpointer
from .precise_bn import PreciseBN
from .profiling import ProfilerHook
from .resuming import find_start, finish, same_optimizer
from .rng import RunSeed, StepSeeds
from .same_start import same_checkpoint, same_weights
from .seen_images import SeenImages
from .sharded_optimizer import GatherState, shard
from .step import StepTrainer
from .stopping import ShieldedLoader, StopHook
from .testing import do_test, summarize, try_evaluation
from .trackers import build_writers, open_writers
from .train_loader import check_train_loader, instantiate_train_loader
from .validation_loss import validation_losses

logger = logging.getLogger(__name__)


def do_train(cfg: DictConfig, *, resume: bool = False) -> dict[str, Any]:
    """Trains a config to the end.

    Args:
        cfg: A config with Detectron2's five keys. It is not changed.
        resume: Continue from the newest whole checkpoint in ``train.output_dir``, if there is one:
            weights, optimizer, schedule, iteration, order of images and augmentations. Otherwise,
            checkpoints of an earlier run are moved to a subfolder.

    Returns:
        Results of the evaluation after the last iteration; if that was done before, those that it
        has written into ``metrics.json``.

    Raises:
        FileNotFoundError: There is no file ``train.init_checkpoint``.
        CheckpointError: The checkpoint is refused, damaged, or from another model. The class
            predictor in ``train.init_checkpoint`` may have other classes: it is then not loaded.
        ValueError: ``train.amp``, ``train.ema`` or ``train.clip_gradients`` has invalid values.
    """
    cfg = copy.deepcopy(cfg)  # the optimizer's node gets the model
    check_categories(cfg)
    start = find_start(view_of(cfg), resume=resume)
    if start.results is not None:
        return start.results
    resume = start.checkpoint is not None
    writers = build_writers(cfg)
    recorded_cfg = copy.deepcopy(cfg)
    recorder = StepRecorder(recorded_cfg, cfg.train.output_dir)
    use_determinism(cfg)
    model = build_model(cfg)
    check_determinism(cfg, model)
    check_device(model)
    check_warm_up(cfg, model)
    logger.info(f"Model:\n{model}", extra=FILE_ONLY)
    num_parameters = sum(p.numel() for p in model.parameters())
    logger.info(f"{type(model).__name__} with {num_parameters / 1e6:.1f} M parameters")
    freeze(model, cfg.train.get("freeze", []))
    checkpoint_activations(cfg, model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    scale_rates(optimizer, model, cfg.train.get("lr_factors", []))
    # Older versions of torch keep betas as the list of omegaconf, which no checkpoint may hold.
    for group in optimizer.param_groups:
        group.update({k: tuple(v) for k, v in group.items() if isinstance(v, ListConfig)})
    optimizer = shard(cfg, optimizer)

    trainer = _build_trainer(cfg, model, optimizer)
    trainer.keep_step = recorder
    # Built after the trainer, which gives the models of all processes the same weights.
    ema = EMAHook(model, decay=cfg.train.ema.decay) if is_enabled(cfg, "ema") else None
    evaluated = model if ema is None else ema.model
    checkpointer = SafeCheckpointer(evaluated, cfg.train.output_dir, trainer=trainer)
    if ema is not None:
        checkpointer.add_checkpointable("trained_model", model)
    seed = RunSeed(cfg.train.get("seed", -1))
    checkpointer.add_checkpointable("run_seed", seed)
    bad_images = BadImages.from_config(cfg)
    if not resume:
        bad_images.forget()
    results: dict[str, Any] = {}
    best = None
    if is_enabled(cfg, "best_checkpoint"):
        best = BestCheckpoint(
            evaluated,
            cfg.train.output_dir,
            metric=cfg.train.best_checkpoint.metric,
            is_resumed=resume,
        )

    early_stopping = EarlyStopping.from_config(cfg, checkpointer)

    def evaluate() -> dict[str, Any]:
        start = time.perf_counter()
        results.clear()
        with quiet_evaluation():
            results.update(do_test(cfg, evaluated))
        if is_enabled(cfg, "validation_loss"):
            losses = validation_losses(cfg, evaluated)
            results.update({"validation": losses} if losses else {})
        if early_stopping is not None:
            early_stopping.update(results)
        if results:  # on the first process
            seconds = time.perf_counter() - start
            logger.info(f"Evaluation: {summarize(results)}  ({seconds:.0f} s)")
            if best is not None:
                best.update(results)
        return results

    evaluation = TimedEvalHook(cfg.train.eval_period, evaluate)
    built = _build_hooks(cfg, model, checkpointer, ema, best, evaluation, seed)
    profiler = ProfilerHook.from_config(cfg)
    check_train_loader(cfg.dataloader.train)
    if not resume:
        with same_weights(cfg.train.init_checkpoint):
            pass
    # What needs no data is known to be right: now minutes of checking data are worth while.
    check_data(cfg)
    evaluation.expected_seconds = try_evaluation(cfg, evaluated)
    # Last, so that it writes what the other hooks log.
    built.append(_build_writer(cfg, evaluation, writers) if comm.is_main_process() else None)
    trainer.register_hooks([StepSeeds(seed), SeenImages(), *built, ContinuedMetrics.of(built)])
    trainer.register_hooks([early_stopping, profiler])
    if resume:
        with same_checkpoint(start.checkpoint.path) as path, same_optimizer(optimizer):
            checkpointer.resume_from(path)
    else:
        with same_weights(cfg.train.init_checkpoint) as path:
            checkpointer.resume_or_load(path, resume=False)
    start_iter = start.iteration

    if start_iter and not seed.continues:
        logger.warning(
            "train.seed is negative, and the checkpoint has no seed: the order of images does not "
            "continue"
        )
    with explained(cfg, "train"):
        trainer.data_loader = ShieldedLoader(
            instantiate_train_loader(
                cfg.dataloader.train, seed=seed.value, start_iter=start_iter, bad_images=bad_images
            )
        )
    # The categories of data sets that were registered by a function are known only now.
    checkpointer.categories = check_categories(cfg)
    if best is not None:
        best.categories = checkpointer.categories
    if comm.is_main_process():
        open_writers(writers, recorded_cfg, is_resumed=resume)
    try:
        with contextlib.suppress(StoppedEarly):
            if start_iter < cfg.train.max_iter:
                trainer.train(start_iter, cfg.train.max_iter)
            else:
                finish(trainer, start_iter)
    finally:
        trainer.reset_data_loader(lambda: None)  # ends the loader's processes now
    return results


def _build_trainer(
    cfg: DictConfig, model: nn.Module, optimizer: torch.optim.Optimizer
) -> StepTrainer:
    """Builds a trainer without a data loader, as the order of images depends on the checkpoint."""
    device_type = next(model.parameters()).device.type
    ddp_args = dict(cfg.train.ddp)
    if device_type == "cpu":
        ddp_args["device_ids"] = None
    dtype = autocast_dtype(cfg) if is_enabled(cfg, "amp") else None
    if dtype == torch.float16 and device_type == "cpu":
        raise ConfigError(
            "train.amp.dtype=float16 needs a GPU; on the CPU use train.amp.dtype=bfloat16"
        )
    trainer = StepTrainer(
        create_ddp_model(model, **ddp_args),
        None,
        optimizer,
        autocast_dtype=dtype,
        # bfloat16 needs no loss scaling.
        grad_scaler=GradScaler(device_type) if dtype == torch.float16 else None,
        accumulate=cfg.train.get("accumulate", 1),
        max_skips=cfg.train.get("nonfinite", {}).get("max_skips", 0),
    )
    batch_size = cfg.dataloader.train.get("total_batch_size")
    if batch_size:  # an uneven one is an error before the data are loaded
        trainer.micro_batches.split(range(batch_size // comm.get_world_size()))
    return trainer


def _build_hooks(
    cfg: DictConfig,
    model: nn.Module,
    checkpointer: SafeCheckpointer,
    ema: EMAHook | None,
    best: BestCheckpoint | None,
    evaluation: TimedEvalHook,
    seed: RunSeed,
) -> list:
    """Builds all hooks but the writer, in the order in which they run after each step."""
    return [
        hooks.IterationTimer(),
        GradientClippingHook(model, max_norm=cfg.train.clip_gradients.max_norm)
        if is_enabled(cfg, "clip_gradients")
        else None,
        BaseLRScheduler(base_lr=cfg.optimizer.get("lr"), scheduler=instantiate(cfg.lr_multiplier)),
        ema,
        *_own_hooks(cfg),
        PreciseBN.from_config(cfg, model, seed),
        GatherState(cfg.train.checkpointer.period, cfg.train.eval_period),
        # Before the evaluation, so that the checkpoint is saved even if the evaluation fails.
        PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
        if comm.is_main_process()
        else None,
        StopHook(checkpointer),
        evaluation,
        best,
    ]


def _build_writer(
    cfg: DictConfig, evaluation: TimedEvalHook, writers: Sequence[EventWriter]
) -> hooks.PeriodicWriter:
    """Builds the hook that writes metrics, and opens their files."""
    PathManager.mkdirs(cfg.train.output_dir)
    return hooks.PeriodicWriter(
        [
            ProgressPrinter(cfg.train.max_iter, evaluation.seconds),
            JSONWriter(os.path.join(cfg.train.output_dir, "metrics.json")),
            TensorboardXWriter(cfg.train.output_dir),
            *writers,
        ],
        period=cfg.train.log_period,
    )


def _own_hooks(cfg: DictConfig) -> list[HookBase]:
    """Instantiates the hooks in ``train.hooks``."""
    nodes = cfg.train.get("hooks")
    own = instantiate(list(nodes)) if isinstance(nodes, ListConfig) else nodes or []
    if not isinstance(own, list) or not all(isinstance(x, HookBase) for x in own):
        raise ConfigError(
            "train.hooks must be a list of hooks of Detectron2, such as [L(MyHook)(...)], got "
            f"{nodes}"
        )
    return own
