"""Evaluates a LazyConfig's model."""

from __future__ import annotations

import copy
import logging
import math
import time
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.evaluation import inference_context, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..plain.stopping import STOP
from .data_check import explained
from .datasets import instantiate_test_loader, load_test_set
from .evaluator_check import check_config_evaluator
from .fast_dev_run import shortened
from .models import AutocastModel, autocast_dtype, build_model_with_tta
from .rng import preserved_rng
from .stopping import ShieldedLoader

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
        loader = shortened(cfg, instantiate_test_loader(cfg.dataloader.test))
        loader = ShieldedLoader(loader, ends_together=True)
    with STOP.immediate():
        results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    results = {f"{task}{suffix}": result for task, result in results.items()}
    print_csv_format(results)
    return results


def summarize(results: dict[str, Any]) -> str:
    """Returns the usual box metrics on one line, or the names of the tasks."""
    metrics = results.get("bbox")
    if not isinstance(metrics, dict):
        return f"{', '.join(results)} evaluated"
    if math.isnan(metrics.get("AP", 0.0)):
        return "nothing was detected"
    shown = (name for name in ("AP", "AP50", "AP75", "AR") if name in metrics)
    return "  ".join(f"{name} {metrics[name]:.1f}" for name in shown)


def try_evaluation(cfg: DictConfig, model: nn.Module) -> float:
    """Checks the test set, and detects objects in a few of its images.

    Returns:
        The estimated seconds for all images; 0 if unknown.

    Raises:
        DataError: Annotations or images are missing or cannot be read.
    """
    dataset, mapper = load_test_set(cfg)
    check_config_evaluator(cfg, dataset)
    if not dataset or mapper is None:
        return 0.0
    with preserved_rng(), inference_context(model), torch.no_grad():
        inputs = [mapper(dataset[i]) for i in range(min(3, len(dataset)))]
        model(inputs[:1])  # the very first call takes longer
        start = time.perf_counter()
        for x in inputs[1:]:
            model([x])
    seconds = (time.perf_counter() - start) / max(len(inputs) - 1, 1)
    return seconds * len(dataset) / comm.get_world_size()
