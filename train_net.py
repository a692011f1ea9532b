#!/usr/bin/env python
"""Trains or evaluates a model from a LazyConfig (.py) or a yaml config, on one or several GPUs.

    python train_net.py --config-file configs/coco/atss_R_50_FPN_1x.py --num-gpus 8
    python train_net.py --config-file configs/demo/atss_mobilenetv2_trees.py train.max_iter=100
    python train_net.py --config-file configs/yaml/atss_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.005

--eval-only evaluates the checkpoint that train.init_checkpoint or MODEL.WEIGHTS names, without and,
if the config has test_time_augmentation (in yaml TEST.AUG.ENABLED), with test-time augmentation.

Flags stand before the overrides: key=value for a LazyConfig, KEY VALUE for yaml. Without a GPU
everything runs on the CPU (--num-gpus is then the number of processes).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import weakref

import atss_d2  # noqa: F401  (first: quiet about the deprecations of its dependencies)

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_argument_parser, launch
from detectron2.evaluation import COCOEvaluator
from omegaconf import DictConfig
from torch import nn

from atss_d2 import DenseDetectorWithTTA
from atss_d2.checkpoint import CheckpointError, SafeCheckpointer
from atss_d2.config import get_config_path, load_config
from atss_d2.engine import (
    apply_overrides,
    apply_yaml_overrides,
    build_model,
    check_checkpoint,
    default_setup,
    do_test,
    do_train,
    load_weights,
    resolve_device,
)
from atss_d2.warning_filters import filter_third_party_warnings

logger = logging.getLogger("atss_d2.train_net")

LAZY_KEYS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


class Trainer(DefaultTrainer):
    """Detectron2's trainer for yaml configs, with safe loading and COCO evaluation."""

    def build_hooks(self) -> list:
        """Detectron2's hooks; before them our checkpointer, which they take, takes its place."""
        self.checkpointer = SafeCheckpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        return super().build_hooks()

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, folder: str = "inference"
    ) -> COCOEvaluator:
        return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, folder))

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """As in Detectron2's train_net.py: results under keys that end with "_TTA"."""
        logger.info("Running inference with test-time augmentation ...")
        evaluators = [
            cls.build_evaluator(cfg, name, folder="inference_TTA") for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, DenseDetectorWithTTA(cfg, model), evaluators)
        return {f"{task}_TTA": result for task, result in results.items()}


def setup(args: argparse.Namespace) -> DictConfig | CfgNode:
    """Loads the config and applies the overrides; errors are sentences, not tracebacks."""
    try:
        if not args.config_file:
            raise ValueError("which config? Give --config-file, for example coco/atss_R_50_FPN_1x")
        if not os.path.isfile(args.config_file):
            args.config_file = get_config_path(args.config_file)
        cfg = load_config(args.config_file)
        if isinstance(cfg, CfgNode):
            apply_yaml_overrides(cfg, args.opts)
            cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
            cfg.freeze()
        else:
            missing = [key for key in LAZY_KEYS if key not in cfg]
            if missing:
                raise ValueError(f"{args.config_file} does not define {', '.join(missing)}")
            apply_overrides(cfg, args.opts)
        check(cfg, args)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        # KeyError puts its message in quotes.
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        sys.exit(f"train_net.py: {' '.join(message.split())}")
    return cfg


def check(cfg: DictConfig | CfgNode, args: argparse.Namespace) -> None:
    """Finds out early what would stop the run after minutes, or in each of the processes."""
    is_yaml = isinstance(cfg, CfgNode)
    if not args.resume:
        check_checkpoint(cfg.MODEL.WEIGHTS if is_yaml else cfg.train.init_checkpoint)
    if is_yaml and not args.eval_only and args.num_gpus > 1 and not torch.cuda.is_available():
        raise ValueError(
            "without a GPU, Detectron2's trainer of yaml configs runs in one process: give "
            "--num-gpus 1 or a LazyConfig"
        )


def load_for_evaluation(
    model: nn.Module, weights: str, output_dir: str, args: argparse.Namespace
) -> None:
    """Loads the weights that the config names; with --resume, the last ones of the run."""
    checkpointer = SafeCheckpointer(model, output_dir)
    if args.resume and checkpointer.has_checkpoint():
        weights = checkpointer.get_checkpoint_file()
    load_weights(model, weights)


def run_lazy(cfg: DictConfig, args: argparse.Namespace) -> dict:
    """Trains or evaluates a LazyConfig."""
    if args.eval_only:
        model = build_model(cfg)
        load_for_evaluation(model, cfg.train.init_checkpoint, cfg.train.output_dir, args)
        return do_test(cfg, model, with_tta=True)
    return do_train(cfg, resume=args.resume)


def run_yaml(cfg: CfgNode, args: argparse.Namespace) -> dict:
    """Trains or evaluates a yaml config."""
    if args.eval_only:
        model = Trainer.build_model(cfg)
        load_for_evaluation(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, args)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    # What train() returns only for configs with expected results.
    return trainer._last_eval_results


def main(args: argparse.Namespace) -> dict:
    """Runs one process of the job."""
    filter_third_party_warnings()
    cfg = setup(args)
    default_setup(cfg, args)
    try:
        return run_yaml(cfg, args) if isinstance(cfg, CfgNode) else run_lazy(cfg, args)
    except CheckpointError as error:
        sys.exit(f"train_net.py: {error}")


if __name__ == "__main__":
    parser = default_argument_parser(epilog=__doc__)
    args = parser.parse_args()
    setup(args)  # a wrong config stops here, not in each of the processes
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
