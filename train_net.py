#!/usr/bin/env python
"""Trains or evaluates a model from a LazyConfig (.py) or a yaml config, on one or several GPUs.

    python train_net.py --config-file configs/coco/atss_R_50_FPN_1x.py --num-gpus 8
    python train_net.py --config-file configs/demo/atss_mobilenetv2_trees.py train.max_iter=100
    python train_net.py --config-file configs/yaml/atss_R_50_FPN_1x.yaml SOLVER.BASE_LR 0.005

Flags stand before the overrides: key=value for a LazyConfig, KEY VALUE for yaml. Without a GPU
everything runs on the CPU (--num-gpus is then the number of processes).
"""

from __future__ import annotations

import argparse
import os
import sys

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import COCOEvaluator
from omegaconf import DictConfig

from atss_d2.config import get_config_path, load_config
from atss_d2.engine import (
    apply_overrides,
    build_model,
    do_test,
    do_train,
    load_weights,
    resolve_device,
)


class Trainer(DefaultTrainer):
    """Detectron2's trainer for yaml configs, with COCO evaluation."""

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        return COCOEvaluator(dataset_name, output_dir=os.path.join(cfg.OUTPUT_DIR, "inference"))


def setup(args: argparse.Namespace) -> DictConfig | CfgNode:
    """Loads the config and applies the overrides; errors are sentences, not tracebacks."""
    try:
        if not args.config_file:
            raise ValueError("which config? Give --config-file, for example coco/atss_R_50_FPN_1x")
        if not os.path.isfile(args.config_file):
            args.config_file = get_config_path(args.config_file)
        cfg = load_config(args.config_file)
        if isinstance(cfg, CfgNode):
            lazy = [opt for opt in args.opts if "=" in opt]
            if lazy:
                raise ValueError(f"'{lazy[0]}': a yaml config takes KEY VALUE, not key=value")
            cfg.merge_from_list(args.opts)
            cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
            cfg.freeze()
        else:
            apply_overrides(cfg, args.opts)
    except (FileNotFoundError, KeyError, ValueError, AssertionError) as error:
        sys.exit(f"train_net.py: {error.args[0] if error.args else error}")
    return cfg


def run_lazy(cfg: DictConfig, args: argparse.Namespace) -> dict:
    """Trains or evaluates a LazyConfig."""
    if args.eval_only:
        model = build_model(cfg)
        load_weights(model, cfg.train.init_checkpoint)
        return do_test(cfg, model)
    return do_train(cfg, resume=args.resume)


def run_yaml(cfg: CfgNode, args: argparse.Namespace) -> dict:
    """Trains or evaluates a yaml config."""
    if args.eval_only:
        model = Trainer.build_model(cfg)
        load_weights(model, cfg.MODEL.WEIGHTS)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def main(args: argparse.Namespace) -> dict:
    """Runs one process of the job."""
    cfg = setup(args)
    default_setup(cfg, args)
    return run_yaml(cfg, args) if isinstance(cfg, CfgNode) else run_lazy(cfg, args)


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
