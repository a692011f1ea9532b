"""Detectron2's trainer for yaml configs, with safe loading and evaluation by data set type."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from ..checkpoint import SafeCheckpointer
from ..config import view_of
from ..data import BoxDatasetMapper
from ..modeling import DenseDetectorWithTTA
from .amp import Detectron2AMPTrainer, with_grad_scaler
from .data_check import explained
from .dataset_checks import check_data
from .evaluation import build_evaluator
from .evaluator_check import check_yaml_evaluators

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's trainer for yaml configs, with safe loading.

    Data sets are evaluated according to their type, see
    :func:`atss_d2.engine.evaluation.build_evaluator`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: The config; its data sets and evaluators are checked first.

        Raises:
            DataError: A data set has errors, or cannot be evaluated.
        """
        names = {"train": "build_train_loader", "test": "build_test_loader"}
        own = [x for x, name in names.items() if not _is_same(type(self), Trainer, name)]
        check_data(cfg, own_loaders=own)
        super().__init__(cfg)
        check_yaml_evaluators(cfg, self.build_evaluator)

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
        return super().build_hooks()

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """Builds Detectron2's loader with our mapper, which keeps the contrast of 16-bit gray."""
        mapper = BoxDatasetMapper(cfg, is_train=True)
        with explained(cfg, "train"):
            return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        """Builds Detectron2's test loader with our mapper."""
        mapper = BoxDatasetMapper(cfg, is_train=False)
        with explained(cfg, "test"):
            return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

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


def _is_same(one: type, other: type, name: str) -> bool:
    return getattr(one, name).__func__ is getattr(other, name).__func__
