"""Checks in ten minutes what only a GPU can show, with two GPUs also NCCL.

    make test-gpu                                   # all; the table goes to docs/performance.md
    python -m benchmarks.gpu labels losses          # some checks, no document
    python -m benchmarks.gpu --list

Every check is a process of its own. Exit code 1: a check failed or was not run. Without a GPU
nothing can be shown: the command says so, lists what it would run, and ends with exit code 0, so
that it can stand in scripts that run everywhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import detectron2
import torch
import torchvision
from tabulate import tabulate

from ablations.document import fill_blocks
from atss_d2.commands.errors import Parser
from atss_d2.warning_filters import filter_third_party_warnings

from . import CHECKS, Environment, Outcome
from .runner import run_all, run_here

BLOCK = "gpu"
_HEADERS = ("check", "result", "figure", "seconds")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="checks; default: all")
    parser.add_argument("--list", action="store_true", help="name the checks, run nothing")
    parser.add_argument("--document", type=Path, metavar="PATH", help="markdown to be filled in")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="for all checks")
    # For the tests of the checks themselves: the branches of a GPU are forced on the CPU.
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in CHECKS]
    if unknown:
        parser.error(f"there is no check '{unknown[0]}'; checks are {', '.join(CHECKS)}")
    if args.minutes <= 0:
        parser.error(f"--minutes must be > 0, got {args.minutes:g}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks for; returns the exit code."""
    args = parse(argv)
    filter_third_party_warnings()
    names = args.names or list(CHECKS)
    if args.one:
        name, path = args.one
        with tempfile.TemporaryDirectory(prefix="atss_gpu_") as folder:
            outcome = run_here(name, Environment(args.device, args.tiny, Path(folder)))
        Path(path).write_text(json.dumps(dataclasses.asdict(outcome)))
        return 0
    if args.list:
        print(plan_table(names))
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU on this machine: nothing was checked. With one, this would run:")
        print(f"\n{plan_table(names)}")
        return 0
    num_gpus = torch.cuda.device_count() if args.device == "cuda" else 2
    print(f"{machine(args.device)}\n")
    outcomes = run_all(
        names,
        device=args.device,
        tiny=args.tiny,
        num_gpus=num_gpus,
        seconds=60 * args.minutes,
        say=lambda x: print(f"{x.name}: {x.result}, {x.seconds:.0f} s: {x.figure}", flush=True),
    )
    table = outcome_table(outcomes)
    print(f"\n{table}\n\n{summary(outcomes)}")
    if args.document:
        fill_blocks(args.document, {BLOCK: f"{machine(args.device)}.\n\n{table}"})
        print(args.document)
    return int(any(outcome.is_bad for outcome in outcomes))


def machine(device: str) -> str:
    """Returns the card and the versions that matter."""
    card = "the CPU, with the branches of a GPU forced"
    if device == "cuda":
        card = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    try:
        from detectron2 import _C  # noqa: F401

        extension = "with _C"
    except ImportError:
        extension = "without _C"
    return (
        f"{card}; torch {torch.__version__}, CUDA {torch.version.cuda}, torchvision "
        f"{torchvision.__version__}, detectron2 {detectron2.__version__} {extension}; "
        f"{datetime.date.today().isoformat()}"
    )


def plan_table(names: Sequence[str]) -> str:
    """Returns what would be run."""
    rows = [
        (name, CHECKS[name].what, CHECKS[name].num_gpus, CHECKS[name].seconds) for name in names
    ]
    total = sum(row[3] for row in rows)
    table = tabulate(rows, ("check", "what it shows", "GPUs", "seconds, about"))
    return f"{table}\n\n{len(rows)} checks, about {total / 60:.0f} minutes"


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """Returns the results in markdown."""
    rows = [
        (
            f"{x.name}: {CHECKS[x.name].what}",
            x.result,
            x.figure.replace("|", ";"),
            f"{x.seconds:.0f}",
        )
        for x in outcomes
    ]
    return tabulate(rows, _HEADERS, tablefmt="github", disable_numparse=True)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Returns how many checks passed, and the names of the others."""
    results = dict.fromkeys(x.result for x in outcomes)
    parts = []
    for result in results:
        names = [x.name for x in outcomes if x.result == result]
        listed = "" if result == "passed" else f" ({', '.join(names)})"
        parts.append(f"{len(names)} {result}{listed}")
    return f"{', '.join(parts)}; {sum(x.seconds for x in outcomes):.0f} s"


if __name__ == "__main__":
    sys.exit(main())
