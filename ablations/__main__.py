"""Reruns the experiments of the paper, Tables 1 to 7: on COCO, or small ones on embedded data.

    python -m ablations --list
    python -m ablations --data shapes --rows 'table3/*' --seeds 0 1 2   # trains; resumable
    python -m ablations --data shapes --positives                       # counts, no training
    python -m ablations --data shapes --report                          # docs/ablations.md
    python -m ablations --data coco --rows table4/k19                   # prints the command
    python -m ablations --data coco --rows table4/k19 --run --num-gpus 8

Rows that are the same experiment in several tables are run once. A finished run is not repeated; an
interrupted one continues from its checkpoint. Put overrides for all runs, key=value as for
train_net.py, last; give --report the same ones.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from atss_d2.commands.errors import Parser, one_sentence
from atss_d2.data import DataError
from atss_d2.plain.files import replacing
from atss_d2.warning_filters import filter_third_party_warnings

from . import (
    DATA,
    QUALITY_ROWS,
    ROWS,
    RPN_ROWS,
    Run,
    collect,
    command,
    execute,
    locked,
    measure_positives,
    plan_runs,
    read_results,
    select_rows,
    write_document,
)
from .document import POSITIVES
from .report import mean_and_spread

ROOT = Path(__file__).resolve().parents[1]
TRAIN_NET = ROOT / "train_net.py"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m ablations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="all rows, quoted AP, what is measured")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="such as 'table3/*'")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--data", choices=tuple(DATA), default="shapes")
    parser.add_argument("--output", type=Path, default=Path("output/ablations"), help="folder")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: cores / threads")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--run", action="store_true", help="with --data coco: run, not only print")
    parser.add_argument("--num-gpus", type=int, default=8, help="with --data coco")
    parser.add_argument("--positives", action="store_true", help="count positives by object size")
    parser.add_argument("--report", action="store_true", help="write tables and pictures")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "ablations.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    # Parsed separately, because --rows and --seeds would take them as their values.
    argv = sys.argv[1:] if argv is None else list(argv)
    overrides = [text for text in argv if "=" in text and not text.startswith("-")]
    args = parser.parse_args([text for text in argv if text not in overrides])
    if args.overrides:
        parser.error(f"'{args.overrides[0]}' is neither a flag nor key=value")
    if not (args.list or args.rows or args.positives or args.report):
        parser.error("what to do? Give --list, --rows, --positives or --report")
    args.overrides = overrides
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    args.threads = max(args.threads, 1)
    args.jobs = max(args.jobs or cores // args.threads, 1)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks for; returns the exit code."""
    args = parse(argv)
    filter_third_party_warnings()
    try:
        failed = run_rows(args) if args.rows else []
        if args.positives:
            count_positives(args)
        if args.report:
            for picture in write_document(
                args.document, args.output, args.data, overrides=args.overrides
            ):
                print(picture)
            print(args.document)
        if args.list:
            list_rows(args)
    except (DataError, OSError, KeyError, ValueError) as error:
        sys.exit(f"ablations: {one_sentence(error)}")
    return 1 if failed else 0


def run_rows(args: argparse.Namespace) -> list[Run]:
    """Trains the rows, or prints the commands; returns the runs that failed."""
    runs = plan_runs(
        select_rows(args.rows),
        args.data,
        seeds=args.seeds,
        output=args.output,
        overrides=args.overrides,
    )
    if args.data == "coco" and not args.run:
        for run in runs:
            print(command(run, TRAIN_NET, num_gpus=args.num_gpus))
        return []
    check_data(runs[0])
    jobs = 1 if args.data == "coco" else args.jobs
    with locked(args.output):
        failed = execute(
            runs,
            TRAIN_NET,
            jobs=jobs,
            threads=args.threads,
            num_gpus=args.num_gpus,
            say=lambda line: print(line, flush=True),
        )
    for run in failed:
        print(f"failed: {run.name}; {run.folder}; alone: {command(run, TRAIN_NET)}")
    return failed


def check_data(run: Run) -> None:
    """Checks before the first run that its data and weights exist; draws generated scenes."""
    for node in (run.cfg.dataloader.train, run.cfg.dataloader.test):
        json_file = MetadataCatalog.get(node.dataset.names).get("json_file")
        if json_file is not None:
            PathManager.get_local_path(json_file)
    if run.cfg.train.init_checkpoint.startswith("atss_d2://"):
        PathManager.get_local_path(run.cfg.train.init_checkpoint)


def count_positives(args: argparse.Namespace) -> None:
    """Counts positives by object size under every rule; --report shows them."""
    torch.set_num_threads(args.threads)
    path = args.output / args.data / POSITIVES
    found = measure_positives(args.data)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    print(path)


def list_rows(args: argparse.Namespace) -> None:
    """Prints every row."""
    rows = select_rows(args.rows) if args.rows else (*ROWS, *QUALITY_ROWS, *RPN_ROWS)
    measurements = collect(
        read_results(args.output, args.data), args.data, rows=rows, overrides=args.overrides
    )
    lines = []
    for row in rows:
        found = measurements[row.name]
        quoted = "insensitive" if row.quoted_ap is None else f"{row.quoted_ap:.1f}"
        ours = f"{mean_and_spread(found)} ({len(found.results)})" if found.results else ""
        lines.append((row.name, row.label, quoted, ours, f"configs/{row.config}.py"))
    ours = f"AP {args.data} (seeds)"
    headers = ("row", "what it is", "quoted AP COCO", ours, "config")
    print(tabulate(lines, headers, disable_numparse=True, colalign=("left", "left", "right")))


if __name__ == "__main__":
    # Like Ctrl-C, this also stops the runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ablations: stopped"))
    sys.exit(main())
