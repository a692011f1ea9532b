"""Detectron2's trainer for yaml configs, with safe loading and evaluation by data set type."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import weakref
from collections.abc import Iterable
from unittest import mock

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data.build import _train_loader_from_config
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer, create_ddp_model, defaults
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..checkpoint import SafeCheckpointer
from ..config import view_of
from ..data import BoxDatasetMapper
from ..data.seeding import seeded
from ..modeling import DenseDetectorWithTTA
from ..plain.stopping import STOP
from .amp import Detectron2AMPTrainer, with_grad_scaler
from .data_check import explained
from .evaluation import build_evaluator
from .rng import RunSeed, StepSeeds
from .same_start import find_start
from .stopping import ShieldedLoader, StopHook
from .train_loader import SAMPLERS, TrainLoader, build_train_loader

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's trainer for yaml configs, with safe loading.

    Data sets are evaluated according to their type, see
    :func:`atss_d2.engine.evaluation.build_evaluator`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._seed = RunSeed(cfg.SEED)
        with contextlib.ExitStack() as stack:
            if cfg.MODEL.DEVICE == "cpu":  # Detectron2 gives the number of a GPU to every process
                on_cpu = functools.partial(create_ddp_model, device_ids=None)
                stack.enter_context(mock.patch.object(defaults, "create_ddp_model", on_cpu))
            super().__init__(cfg)

    def train(self) -> dict | None:
        """Trains as Detectron2 does, and ends the loader's processes."""
        self.data_loader = ShieldedLoader(self.data_loader)
        try:
            return super().train()
        finally:
            self._trainer.reset_data_loader(lambda: None)

    def resume_or_load(self, resume: bool = True) -> None:
        """Loads the same checkpoint in all processes, and moves order and augmentations to it."""
        start = find_start(self.checkpointer, self.cfg.MODEL.WEIGHTS, resume=resume)
        start.load(self.checkpointer)
        if start.is_resumed:
            self.start_iter = self.iter + 1
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.continue_at(self.start_iter, seed=self._seed.value)

    def load_state_dict(self, state_dict: dict) -> None:
        """Loads a state; with ``SOLVER.AMP.ENABLED`` also that of a run without loss scaling."""
        if isinstance(self._trainer, Detectron2AMPTrainer):
            state = with_grad_scaler(state_dict["_trainer"], self._trainer)
            state_dict = {**state_dict, "_trainer": state}
        super().load_state_dict(state_dict)

    def build_hooks(self) -> list:
        """Builds Detectron2's hooks after replacing the checkpointer, which they use, by ours."""
        self.checkpointer = SafeCheckpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.checkpointer.categories = view_of(self.cfg).categories
        self.checkpointer.add_checkpointable("run_seed", self._seed)
        hooks = [StepSeeds(self._seed), *super().build_hooks()]
        place = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        return [*hooks[:place], StopHook(self.checkpointer), *hooks[place:]]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """Builds a loader of Detectron2's keys that continues in a resumed run.

        It has our mapper, which keeps the contrast of 16-bit gray.
        """
        seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        mapper = BoxDatasetMapper(cfg, is_train=True)
        # A sampler without a seed of its own then draws the same one in a resumed run.
        with explained(cfg, "train"), seeded(seed, SAMPLERS):
            arguments = _train_loader_from_config(cfg, mapper=mapper)
            if type(arguments["sampler"]) is TrainingSampler:
                arguments["sampler"] = None  # the default, which takes the seed of the run
            return build_train_loader(**arguments, seed=seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        """Builds Detectron2's test loader with our mapper."""
        mapper = BoxDatasetMapper(cfg, is_train=False)
        with explained(cfg, "test"):
            loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
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
