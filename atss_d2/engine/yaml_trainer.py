"""Detectron2's trainer for yaml configs, with safe loading and evaluation by data set type."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Iterable
from unittest import mock

import torch
from detectron2.config import CfgNode
from detectron2.data.build import _train_loader_from_config
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer, create_ddp_model, defaults, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..checkpoint import SafeCheckpointer
from ..config import ConfigError, view_of
from ..data import BoxDatasetMapper, build_test_loader
from ..data.seeding import seeded
from ..modeling import DenseDetectorWithTTA
from ..plain.stopping import STOP
from .amp import GradScaler
from .bad_images import BadImages
from .data_check import explained
from .dataset_checks import check_data
from .datasets import load_test_set_of, load_training_set
from .determinism import check_determinism, use_determinism
from .evaluation import build_evaluator
from .evaluator_check import check_yaml_evaluators
from .metrics import ContinuedMetrics
from .models import check_device, check_warm_up
from .nonfinite import StepRecorder
from .periodic_checkpointer import PeriodicCheckpointer
from .resuming import Start, find_start, finish, same_optimizer
from .rng import RunSeed, StepSeeds
from .same_start import same_checkpoint, same_weights
from .seen_images import SeenImages
from .step import StepTrainer
from .stopping import ShieldedLoader, StopHook
from .train_loader import SAMPLERS, TrainLoader, build_train_loader, checked_batch_size

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's trainer for yaml configs, with safe loading.

    Data sets are evaluated according to their type, see
    :func:`atss_d2.engine.evaluation.build_evaluator`.
    """

    _start = Start()

    def __init__(self, cfg: CfgNode) -> None:
        """Checks the data, then builds what :class:`StepTrainer` takes.

        Raises:
            DataError: A data set has errors, or cannot be evaluated.
        """
        if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
            raise ConfigError(
                "SOLVER.AMP.ENABLED is float16, which needs a GPU: set it to False, or use a "
                "LazyConfig with train.amp.dtype=bfloat16"
            )
        names = {"train": "build_train_loader", "test": "build_test_loader"}
        own = [x for x, name in names.items() if not _is_same(type(self), Trainer, name)]

        def load(cfg: CfgNode) -> Iterable[list[dict]]:
            checked_batch_size(cfg.SOLVER.IMS_PER_BATCH)
            check_data(cfg, own_loaders=own)
            return type(self).build_train_loader(cfg)

        use_determinism(cfg)
        self._seed = RunSeed(cfg.SEED)
        with contextlib.ExitStack() as stack:
            if cfg.MODEL.DEVICE == "cpu":  # Detectron2 gives the number of a GPU to every process
                on_cpu = functools.partial(create_ddp_model, device_ids=None)
                stack.enter_context(mock.patch.object(defaults, "create_ddp_model", on_cpu))
            # Called when the model and the optimizer are built: checking data takes minutes.
            stack.enter_context(mock.patch.object(self, "build_train_loader", load))
            super().__init__(cfg)
        if cfg.SEED < 0 and isinstance(self.data_loader, TrainLoader):
            self._seed.value = self.data_loader.samples.seed
        check_determinism(cfg, self.model)
        check_yaml_evaluators(cfg, self.build_evaluator)
        scaler = getattr(self._trainer, "grad_scaler", None)
        self._trainer = StepTrainer(
            self.model,
            self.data_loader,
            self.optimizer,
            autocast_dtype=torch.float16 if scaler is not None else None,
            grad_scaler=GradScaler() if scaler is not None else None,
        )
        self._trainer.keep_step = StepRecorder(cfg, cfg.OUTPUT_DIR)
        check_device(self._trainer.trained_model)
        check_warm_up(cfg, self._trainer.trained_model)

    def resume_or_load(self, resume: bool = True) -> None:
        """Resumes from the newest whole checkpoint, or begins with ``cfg.MODEL.WEIGHTS``.

        If the run is finished, :meth:`train` does only what is missing.
        """
        self._start = find_start(view_of(self.cfg), resume=resume)
        self.start_iter = self._start.iteration
        if self._start.checkpoint is None:
            with same_weights(self.cfg.MODEL.WEIGHTS) as path:
                self.checkpointer.resume_or_load(path, resume=False)
        else:
            path = self._start.checkpoint.path
            with same_checkpoint(path) as path, same_optimizer(self._trainer.optimizer):
                self.checkpointer.resume_from(path)
        self._continue_loader()
        if self._start.results is not None:
            self._last_eval_results = self._start.results

    def train(self) -> dict | None:
        """Trains as Detectron2's trainer does, or evaluates a run whose iterations are done."""
        if self._start.results is not None:
            return None
        self.data_loader = ShieldedLoader(self.data_loader)
        try:
            if self.start_iter < self.max_iter:
                return super().train()
            return finish(self, self.start_iter)
        finally:
            self._trainer.reset_data_loader(lambda: None)  # ends the loader's processes now

    def _continue_loader(self) -> None:
        if not self.start_iter:
            BadImages.from_config(self.cfg).forget()
        loader = self.data_loader
        if not isinstance(loader, TrainLoader):
            return
        if loader.has_own_order and loader.samples.seed != self._seed.value:
            # The sampler was built with another seed than the one in the checkpoint.
            loader = self.build_train_loader(_with_seed(self.cfg, self._seed.value))
            self.data_loader = self._trainer.data_loader = loader
        loader.continue_at(self.start_iter, seed=self._seed.value)

    def build_hooks(self) -> list:
        """Builds Detectron2's hooks after replacing the checkpointer, which they use, by ours."""
        self.checkpointer = SafeCheckpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.checkpointer.categories = view_of(self.cfg).categories
        self.checkpointer.add_checkpointable("run_seed", self._seed)
        ours = PeriodicCheckpointer(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD)
        found = [
            StepSeeds(self._seed),
            SeenImages(),
            *(
                ours if type(hook) is hooks.PeriodicCheckpointer else hook
                for hook in super().build_hooks()
            ),
        ]
        place = next(i for i, hook in enumerate(found) if isinstance(hook, hooks.EvalHook))
        found.insert(place, StopHook(self.checkpointer))
        return [*found, ContinuedMetrics.of(found)]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """Builds a loader of Detectron2's keys that continues in a resumed run.

        It has our mapper, which keeps the contrast of 16-bit gray.
        """
        if cfg.SEED < 0:
            cfg = _with_seed(cfg, comm.shared_random_seed())
        mapper, bad_images = BoxDatasetMapper(cfg, is_train=True), BadImages.from_config(cfg)
        # A sampler without a seed of its own then draws the same one in a resumed run.
        with explained(cfg, "train"), seeded(cfg.SEED, SAMPLERS):
            dataset = load_training_set(cfg, mapper, is_checked=not bad_images.skips)
            arguments = _train_loader_from_config(cfg, mapper=mapper, dataset=dataset)
            if type(arguments["sampler"]) is TrainingSampler:
                arguments["sampler"] = None  # the default, which takes the seed of the run
            return build_train_loader(**arguments, seed=cfg.SEED, bad_images=bad_images)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        """Builds Detectron2's test loader with our mapper."""
        mapper = BoxDatasetMapper(cfg, is_train=False)
        with explained(cfg, "test"):
            loader = build_test_loader(
                load_test_set_of(cfg, dataset_name, mapper),
                mapper=mapper,
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
        return ShieldedLoader(loader, ends_together=True)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict:
        """Evaluates as Detectron2 does; a signal ends it at once."""
        with STOP.immediate():
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, folder: str = "inference"
    ) -> DatasetEvaluator:
        return build_evaluator(dataset_name, os.path.join(cfg.OUTPUT_DIR, folder))

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Evaluates with test-time augmentation; as in Detectron2, keys end with "_TTA"."""
        logger.info("Running inference with test-time augmentation ...")
        evaluators = [
            cls.build_evaluator(cfg, name, folder="inference_TTA") for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, DenseDetectorWithTTA(cfg, model), evaluators)
        return {f"{task}_TTA": result for task, result in results.items()}


def _with_seed(cfg: CfgNode, seed: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed
    return cfg


def _is_same(one: type, other: type, name: str) -> bool:
    return getattr(getattr(one, name), "__func__", None) is getattr(other, name).__func__
