"""Trains the zoo and the paper's tables on COCO, and sets measured beside quoted AP.

    python tools/reproduce.py --list                         # recipes, quoted AP, state, results
    python tools/reproduce.py --canary coco/atss_R_50_FPN_1x --nproc 8    # minutes, before days
    python tools/reproduce.py 'coco/*_1x' 'table3/*' --nproc 8            # one after the other
    python tools/reproduce.py 'coco/*' --print               # prints the commands, runs nothing
    python tools/reproduce.py 'coco/*' --nproc 8 --submit slurm --sbatch=--partition=gpu
    python tools/reproduce.py 'coco/*' --collect             # results of jobs; the table
    python tools/reproduce.py --canary demo/atss_mobilenetv2_trees        # no GPU, no COCO

Runs go to --output; a finished one is not repeated, a stopped one continues from its checkpoint.
--canary trains the first iterations of any config and ends with exit code 1 as soon as a loss, the
gradient, the learning rate or the data leave their bounds. Put overrides, key=value as for
train_net.py, last; give --collect the same ones.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ablations import command, execute, locked
from ablations.document import fill_blocks
from atss_d2.commands.errors import Parser, one_sentence
from atss_d2.data import DataError
from atss_d2.warning_filters import filter_third_party_warnings

from . import bounds
from .canary import Verdict, sing
from .jobs import collect, plan, table
from .recipes import recipes, select
from .slurm import submit

ROOT = Path(__file__).resolve().parents[1]
TRAIN_NET = ROOT / "train_net.py"
BLOCK = "reproduction"
# Iterations of the canary: of a recipe on COCO, and of one on the embedded data.
_ITERATIONS, _EMBEDDED_ITERATIONS = 500, max(bounds.MEASURED_AT) + 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="reproduce.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="such as 'coco/*_1x'")
    parser.add_argument("--list", action="store_true", help="all recipes, quoted and measured AP")
    parser.add_argument("--canary", metavar="CONFIG", help="check the first iterations of a config")
    parser.add_argument("--collect", action="store_true", help="read results, print the table")
    parser.add_argument("--print", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--submit", choices=("slurm",), help="submit jobs instead of running")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="of #SBATCH; repeatable"
    )
    parser.add_argument(
        "--nproc", type=int, default=1, metavar="N", help="processes, one per GPU (%(default)s)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--output", type=Path, default=Path("output/reproduction"), help="folder")
    parser.add_argument("--document", type=Path, help="markdown to fill in with the table")
    parser.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help=f"of the canary; default {_ITERATIONS}, on the embedded data {_EMBEDDED_ITERATIONS}",
    )
    parser.add_argument("--bounds", metavar="RECIPE", help="whose measured bounds the canary uses")
    parser.add_argument("--keep-going", action="store_true", help="canary: train despite a finding")
    parser.add_argument(
        "--record", action="store_true", help="canary: write bounds from healthy --seeds"
    )
    argv = sys.argv[1:] if argv is None else list(argv)
    overrides = [text for text in argv if "=" in text and not text.startswith("-")]
    args = parser.parse_args([text for text in argv if text not in overrides])
    args.overrides = overrides
    if not (args.list or args.recipes or args.canary or args.collect):
        parser.error("what to do? Give a recipe, --list, --collect or --canary CONFIG")
    if args.canary and args.recipes:
        parser.error("--canary looks at one config: leave out the recipes")
    if args.nproc < 1:
        parser.error(f"--nproc must be >= 1, got {args.nproc}")
    if args.iterations is not None and args.iterations < 1:
        parser.error(f"--iterations must be >= 1, got {args.iterations}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks for; returns the exit code."""
    args = parse(argv)
    filter_third_party_warnings()
    try:
        if args.canary:
            return run_canary(args)
        return run_recipes(args)
    except (DataError, OSError, KeyError, ValueError, RuntimeError) as error:
        sys.exit(f"reproduce.py: {one_sentence(error)}")


def starter(nproc: int) -> list[str]:
    """Returns the command that starts train_net.py in this number of processes."""
    if nproc == 1:
        return [sys.executable]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc-per-node={nproc}"]


def run_recipes(args: argparse.Namespace) -> int:
    """Runs, submits, prints or lists recipes; returns the exit code."""
    selected = select(args.recipes) if args.recipes else list(recipes())
    runs = plan(selected, seeds=args.seeds, output=args.output, overrides=args.overrides)
    failed = []
    if args.submit:
        submit(runs, TRAIN_NET, num_gpus=args.nproc, options=args.sbatch, say=_say)
    elif args.print:
        for run in runs:
            start = ["python", *starter(args.nproc)[1:]]
            print(command(run, TRAIN_NET, num_gpus=None, starter=start))
    elif args.list or args.collect:
        for run in collect(runs):
            _say(f"{run.name}: results in {run.folder}")
        found = table(selected, runs, args.overrides)
        print(found)
        if args.document:
            fill_blocks(args.document, {BLOCK: found})
    else:
        with locked(args.output):
            failed = execute(runs, TRAIN_NET, num_gpus=None, starter=starter(args.nproc), say=_say)
        print(table(selected, runs, args.overrides))
    return 1 if failed else 0


def run_canary(args: argparse.Namespace) -> int:
    """Runs the canary for every seed; returns the exit code."""
    is_embedded = args.canary.removesuffix(".py").rpartition("configs/")[2].startswith("demo/")
    iterations = args.iterations or (_EMBEDDED_ITERATIONS if is_embedded else _ITERATIONS)
    name = args.bounds or args.canary.removesuffix(".py").rpartition("configs/")[2]
    verdicts = {}
    for seed in args.seeds:
        verdicts[seed] = sing(
            args.canary,
            args.overrides,
            args.output / "canary",
            train_net=TRAIN_NET,
            starter=starter(args.nproc),
            iterations=iterations,
            bounds=name,
            seed=seed,
            keep_going=args.keep_going,
            say=_say,
        )
        _say(_summary(args.canary, seed, verdicts[seed]))
    if args.record:
        bounds.record(name, {seed: verdict.rows for seed, verdict in verdicts.items()})
        _say(bounds.MEASURED)
    return 1 if any(verdict.complaints for verdict in verdicts.values()) else 0


def _summary(config: str, seed: int, verdict: Verdict) -> str:
    found = "all is well"
    if verdict.complaints:
        first, *others = verdict.complaints
        found = first + (f" (and {len(others)} more)" if others else "")
    lines = [
        f"{config}, seed {seed}: {found}",
        *verdict.notes,
        f"{len(verdict.rows)} iterations, {verdict.seconds:.0f} s"
        + (f"; {verdict.folder}" if verdict.folder else ""),
    ]
    return "\n".join(lines)


def _say(line: object) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    # Like Ctrl-C, this also stops what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("reproduce.py: stopped"))
    sys.exit(main())
