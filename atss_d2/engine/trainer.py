"""Trains and evaluates a LazyConfig with Detectron2's trainer and hooks."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.engine import HookBase, SimpleTrainer, create_ddp_model, hooks
from detectron2.evaluation import inference_context, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, ListConfig
from torch import nn

from ..checkpoint import SafeCheckpointer
from ..config import ConfigError
from ..plain.stopping import STOP
from .amp import AMPTrainer
from .console import FILE_ONLY, ProgressPrinter, quiet_evaluation
from .data_check import check_categories, check_images, explained, load_test_set
from .ema import EMAHook
from .evaluation_hooks import BaseLRScheduler, BestCheckpoint, TimedEvalHook
from .gradient_clipping import GradientClippingHook
from .models import (
    AutocastModel,
    autocast_dtype,
    build_model,
    build_model_with_tta,
    is_enabled,
)
from .rng import RunSeed, StepSeeds, preserved_rng
from .same_start import find_start
from .stopping import ShieldedLoader, StopHook
from .train_loader import instantiate_train_loader

logger = logging.getLogger(__name__)


def do_test(cfg: DictConfig, model: nn.Module, *, with_tta: bool = False) -> dict[str, Any]:
    """Evaluates a model on ``dataloader.test`` with ``dataloader.evaluator``.

    Args:
        cfg: A config with Detectron2's five keys. It is not changed.
        model: The model that the config describes.
        with_tta: Also evaluate it with test-time augmentation, if the config has the key
            ``test_time_augmentation``.

    Returns:
        The evaluator's results; those with test-time augmentation have keys that end with "_TTA".
        Empty on all processes except the first, and if the config has no evaluator.
    """
    if cfg.dataloader.get("evaluator") is None:
        return {}
    model_with_tta = None
    if with_tta and cfg.get("test_time_augmentation") is not None:
        model_with_tta = build_model_with_tta(cfg, model)  # fails before a long evaluation, if ever
    results = _evaluate(cfg, model)
    if model_with_tta is not None:
        logger.info("Running inference with test-time augmentation ...")
        cfg = copy.deepcopy(cfg)
        if "output_dir" in cfg.dataloader.evaluator:  # keeps the first evaluation's files
            cfg.dataloader.evaluator.output_dir += "_TTA"
        results.update(_evaluate(cfg, model_with_tta, suffix="_TTA"))
    return results


def _evaluate(cfg: DictConfig, model: nn.Module, suffix: str = "") -> dict[str, Any]:
    if cfg.train.get("amp", {}).get("inference", False):
        model = AutocastModel(model, autocast_dtype(cfg))
    with explained(cfg, "test"):
        loader = ShieldedLoader(instantiate(cfg.dataloader.test), ends_together=True)
    with STOP.immediate():
        results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    results = {f"{task}{suffix}": result for task, result in results.items()}
    print_csv_format(results)
    return results


def _summary(results: dict[str, Any]) -> str:
    """Returns the usual box metrics on one line, or the names of the tasks."""
    metrics = results.get("bbox")
    if not isinstance(metrics, dict):
        return f"{', '.join(results)} evaluated"
    if math.isnan(metrics.get("AP", 0.0)):
        return "nothing was detected"
    shown = (name for name in ("AP", "AP50", "AP75", "AR") if name in metrics)
    return "  ".join(f"{name} {metrics[name]:.1f}" for name in shown)


def do_train(cfg: DictConfig, *, resume: bool = False) -> dict[str, Any]:
    """Trains a config to the end.

    Args:
        cfg: A config with Detectron2's five keys. It is not changed.
        resume: Continue from ``last_checkpoint`` in ``train.output_dir``, if there is one: weights,
            optimizer, schedule, iteration, order of images and augmentations.

    Returns:
        Results of the evaluation after the last iteration.

    Raises:
        FileNotFoundError: There is no file ``train.init_checkpoint``.
        CheckpointError: The checkpoint is refused, damaged, or from another model. The class
            predictor in ``train.init_checkpoint`` may have other classes: it is then not loaded.
        ValueError: ``train.amp``, ``train.ema`` or ``train.clip_gradients`` has invalid values.
    """
    cfg = copy.deepcopy(cfg)  # the optimizer's node gets the model
    check_categories(cfg)
    model = build_model(cfg)
    logger.info(f"Model:\n{model}", extra=FILE_ONLY)
    num_parameters = sum(p.numel() for p in model.parameters())
    logger.info(f"{type(model).__name__} with {num_parameters / 1e6:.1f} M parameters")
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    # Older versions of torch keep betas as the list of omegaconf, which no checkpoint may hold.
    for group in optimizer.param_groups:
        group.update({k: tuple(v) for k, v in group.items() if isinstance(v, ListConfig)})

    trainer = _build_trainer(cfg, model, optimizer)
    # Built after the trainer, which gives the models of all processes the same weights.
    ema = EMAHook(model, decay=cfg.train.ema.decay) if is_enabled(cfg, "ema") else None
    evaluated = model if ema is None else ema.model
    checkpointer = SafeCheckpointer(evaluated, cfg.train.output_dir, trainer=trainer)
    if ema is not None:
        checkpointer.add_checkpointable("trained_model", model)
    seed = RunSeed(cfg.train.get("seed", -1))
    checkpointer.add_checkpointable("run_seed", seed)
    # Before minutes of checking data.
    start = find_start(checkpointer, cfg.train.init_checkpoint, resume=resume)
    resume = start.is_resumed
    results: dict[str, Any] = {}
    best = None
    if is_enabled(cfg, "best_checkpoint"):
        best = BestCheckpoint(
            evaluated,
            cfg.train.output_dir,
            metric=cfg.train.best_checkpoint.metric,
            is_resumed=resume,
        )

    def evaluate() -> dict[str, Any]:
        start = time.perf_counter()
        results.clear()
        with quiet_evaluation():
            results.update(do_test(cfg, evaluated))
        if results:  # on the first process
            seconds = time.perf_counter() - start
            logger.info(f"Evaluation: {_summary(results)}  ({seconds:.0f} s)")
            if best is not None:
                best.update(results)
        return results

    # Before the first iteration: finds problems of the validation set, and measures its duration.
    expected_seconds = _try_evaluation(cfg, evaluated)
    trainer.register_hooks([StepSeeds(seed)])
    trainer.register_hooks(
        _build_hooks(cfg, model, checkpointer, ema, best, evaluate, expected_seconds)
    )
    start.load(checkpointer)
    # The checkpoint has the last finished iteration; training starts with the next one.
    start_iter = trainer.iter + 1 if resume else 0

    if start_iter and not seed.continues:
        logger.warning(
            "train.seed is negative, and the checkpoint has no seed: the order of images does not "
            "continue"
        )
    with explained(cfg, "train"):
        trainer.data_loader = ShieldedLoader(
            instantiate_train_loader(cfg.dataloader.train, seed=seed.value, start_iter=start_iter)
        )
    # The categories of data sets that were registered by a function are known only now.
    checkpointer.categories = check_categories(cfg)
    if best is not None:
        best.categories = checkpointer.categories
    try:
        trainer.train(start_iter, cfg.train.max_iter)
    finally:
        trainer.reset_data_loader(lambda: None)  # ends the loader's processes now
    return results


def _try_evaluation(cfg: DictConfig, model: nn.Module) -> float:
    """Checks the test set, and detects objects in a few of its images.

    Returns:
        The estimated seconds for all images; 0 if unknown.

    Raises:
        DataError: Annotations or images are missing or cannot be read.
    """
    dataset, mapper = load_test_set(cfg)
    if not dataset or mapper is None:
        return 0.0
    if isinstance(mapper, DatasetMapper):  # other mappers may read anything
        check_images(dataset, "test")
    with preserved_rng(), inference_context(model), torch.no_grad():
        inputs = [mapper(dataset[i]) for i in range(min(3, len(dataset)))]
        model(inputs[:1])  # the very first call takes longer
        start = time.perf_counter()
        for x in inputs[1:]:
            model([x])
    seconds = (time.perf_counter() - start) / max(len(inputs) - 1, 1)
    return seconds * len(dataset) / comm.get_world_size()


def _build_trainer(
    cfg: DictConfig, model: nn.Module, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """Builds a trainer without a data loader, as the order of images depends on the checkpoint."""
    device = next(model.parameters()).device
    ddp_args = dict(cfg.train.ddp)
    if device.type == "cpu":
        ddp_args["device_ids"] = None
    if not is_enabled(cfg, "amp"):
        return SimpleTrainer(create_ddp_model(model, **ddp_args), None, optimizer)
    dtype = autocast_dtype(cfg)
    if dtype == torch.bfloat16:  # needs no loss scaling
        model = AutocastModel(create_ddp_model(model, **ddp_args), dtype)
        return SimpleTrainer(model, None, optimizer)
    if device.type == "cpu":
        raise ValueError(
            "train.amp.dtype=float16 needs a GPU; on the CPU use train.amp.dtype=bfloat16"
        )
    return AMPTrainer(create_ddp_model(model, **ddp_args), None, optimizer)


def _build_hooks(
    cfg: DictConfig,
    model: nn.Module,
    checkpointer: SafeCheckpointer,
    ema: EMAHook | None,
    best: BestCheckpoint | None,
    evaluate: Callable[[], dict],
    expected_seconds: float,
) -> list:
    """Builds all hooks, in the order in which they run after each step."""
    is_main = comm.is_main_process()
    PathManager.mkdirs(cfg.train.output_dir)
    evaluation = TimedEvalHook(cfg.train.eval_period, evaluate, expected_seconds=expected_seconds)
    return [
        hooks.IterationTimer(),
        GradientClippingHook(model, max_norm=cfg.train.clip_gradients.max_norm)
        if is_enabled(cfg, "clip_gradients")
        else None,
        BaseLRScheduler(base_lr=cfg.optimizer.get("lr"), scheduler=instantiate(cfg.lr_multiplier)),
        ema,
        *_own_hooks(cfg),
        # Before the evaluation, so that the checkpoint is saved even if the evaluation fails.
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if is_main else None,
        StopHook(checkpointer),
        evaluation,
        best,
        # Last, so that it writes what the other hooks log.
        hooks.PeriodicWriter(
            [
                ProgressPrinter(cfg.train.max_iter, evaluation.seconds),
                JSONWriter(os.path.join(cfg.train.output_dir, "metrics.json")),
                TensorboardXWriter(cfg.train.output_dir),
            ],
            period=cfg.train.log_period,
        )
        if is_main
        else None,
    ]


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
