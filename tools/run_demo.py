#!/usr/bin/env python
"""Trains the demo config, evaluates it on held-out photographs, and draws the results.

    python tools/run_demo.py                                     # what `make demo` runs
    python tools/run_demo.py --resume                            # continues after an interruption
    python tools/run_demo.py train.max_iter=50 train.seed=1 train.output_dir=output/quick

Overrides are as for train_net.py. Everything is written to train.output_dir.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also works in a checkout

import atss_d2  # must be imported first: silences deprecation warnings of its dependencies

# isort: split
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from atss_d2.checkpoint import CheckpointError
from atss_d2.commands.errors import EXPECTED, Parser, fail, one_sentence
from atss_d2.config import ConfigError
from atss_d2.engine import (
    apply_overrides,
    build_model,
    check_checkpoint,
    check_dataset_files,
    claimed_folder,
    default_setup,
    do_test,
    do_train,
    keep_freed_memory,
    load_weights,
    resolve_device,
)
from atss_d2.visualization import plot_training_curves, save_comparisons
from atss_d2.warning_filters import filter_third_party_warnings

CONFIG = "demo/atss_mobilenetv2_trees"
METRICS = ("AP", "AP50", "AP75", "AR")
# Evaluated after training in addition to the config's own test set: in Florida, not Wyoming.
OTHER_SITE = "trees_site2"


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG, help="a config of a test set with images")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    filter_third_party_warnings()
    try:
        cfg = atss_d2.get_config(args.config)
        apply_overrides(cfg, args.overrides)
        if not args.resume:
            check_checkpoint(cfg.train.init_checkpoint)
        check_dataset_files(cfg, with_training=True)
    except EXPECTED as error:
        parser.error(one_sentence(error))

    start = time.perf_counter()
    try:
        with claimed_folder(cfg.train.output_dir, resume=args.resume, overwrite=True):
            return train_and_draw(args, cfg, start)
    except (CheckpointError, ConfigError) as error:
        fail(parser, error)


def train_and_draw(args: argparse.Namespace, cfg: DictConfig, start: float) -> int:
    """Trains, evaluates and draws; returns the exit code."""
    output_dir = Path(cfg.train.output_dir)
    default_setup(cfg, args)
    cfg.train.device = resolve_device(cfg.train.device)
    if cfg.train.device == "cpu":
        keep_freed_memory()
    results = {cfg.dataloader.test.dataset.names: do_train(cfg, resume=args.resume)["bbox"]}
    training_seconds = time.perf_counter() - start
    results[OTHER_SITE] = evaluate_other_site(cfg, output_dir)["bbox"]

    pictures = [
        plot_training_curves(output_dir / "metrics.json", output_dir / "learning_curve.png")
    ]
    for name in results:
        pictures += save_comparisons(
            name,
            inference_dir(output_dir, name, cfg) / "coco_instances_results.json",
            output_dir / "pictures" / name,
            score_thresh=0.5,
        )
    seconds = time.perf_counter() - start
    write_summary(output_dir, results, training_seconds, seconds)
    print_summary(output_dir, results, seconds, pictures)
    return 0


def inference_dir(output_dir: Path, name: str, cfg: DictConfig) -> Path:
    """Returns the folder of the detections of a data set."""
    is_test_set = name == cfg.dataloader.test.dataset.names
    return output_dir / ("inference" if is_test_set else f"inference_{name}")


def evaluate_other_site(cfg: DictConfig, output_dir: Path) -> dict:
    """Evaluates the final checkpoint on photographs of another site."""
    cfg = cfg.copy()
    cfg.dataloader.test.dataset.names = OTHER_SITE
    cfg.dataloader.evaluator.output_dir = str(output_dir / f"inference_{OTHER_SITE}")
    model = build_model(cfg)
    load_weights(model, str(output_dir / "model_final.pth"))
    return do_test(cfg, model)


def write_summary(
    output_dir: Path, results: dict[str, dict], training_seconds: float, seconds: float
) -> None:
    """Writes the table as ``summary.json``; a metric without any detections is null."""
    summary = {
        "results": {
            name: {m: values[m] if math.isfinite(values[m]) else None for m in METRICS}
            for name, values in results.items()
        },
        "training_seconds": round(training_seconds, 1),
        "seconds": round(seconds, 1),
    }
    (output_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def print_summary(
    output_dir: Path, results: dict[str, dict], seconds: float, pictures: list[Path]
) -> None:
    """Prints the table and where the pictures are."""
    console = Console()
    table = Table(title="Detections on photographs that were held out")
    table.add_column("data set")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for name, values in results.items():
        table.add_row(name, *(f"{values[metric] / 100:.3f}" for metric in METRICS))
    console.print(table)
    console.print(f"Total time in seconds: {seconds:.0f}")
    console.print(f"Everything is in {output_dir}; pictures to look at:")
    for picture in pictures:
        console.print(f"  {picture}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
