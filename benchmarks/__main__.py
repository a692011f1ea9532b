"""Measures atss_d2 against what people would use instead.

    python -m benchmarks                         # everything, about a quarter of an hour
    python -m benchmarks assignment nms          # some cases
    python -m benchmarks --quick                 # does it run? Tiny sizes, about a minute
    python -m benchmarks --document docs/performance.md   # also fills its tables and picture
    python -m benchmarks --report --document docs/performance.md   # only that, from earlier runs
    python -m benchmarks deployment exported_nms --document docs/deployment.md  # exported models

Earlier results of other cases stay in the JSON file, together with the machine that they were
measured on. Run nothing else meanwhile: ratios tolerate it, their spread does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import atss_d2  # noqa: F401  (must be imported first: silences deprecation warnings)

# isort: split
import torch
from tqdm import tqdm

from atss_d2.commands.errors import Parser
from atss_d2.data import DataError
from atss_d2.engine import keep_freed_memory
from atss_d2.warning_filters import filter_third_party_warnings

from .cases import CASES
from .document import write_document
from .machine import describe_machine, machine_line
from .picture import plot_assignment
from .report import case_tables, targets_table
from .results import CaseResult, Measurement, read_json, write_json
from .settings import Settings

PICTURE = "assignment_time.png"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"cases: {', '.join(CASES)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument(
        "--full-size", action="store_true", help="training steps on 800 x 1344, some 10 minutes"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also inference with torch.compile and AOTInductor (C++ compiler, minutes)",
    )
    parser.add_argument("--report", action="store_true", help="measure nothing, show the JSON file")
    parser.add_argument(
        "--json", type=Path, default=Path("output/benchmarks/benchmarks.json"), metavar="PATH"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="PATH",
        help=f"default: {PICTURE} beside the JSON file, or in images/ beside the document",
    )
    parser.add_argument("--document", type=Path, metavar="PATH", help="markdown to be filled in")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU")
    parser.add_argument(
        "--seconds", type=float, metavar="N", help="for each race; default: 5, quick: 0"
    )
    parser.add_argument(
        "--keep-memory", action="store_true", help="no page faults: see atss_d2/engine/memory.py"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in CASES]
    if unknown:
        parser.error(f"there is no case '{unknown[0]}'; cases are {', '.join(CASES)}")
    if args.threads < 1:
        parser.error(f"--threads must be >= 1, got {args.threads}")
    if args.seconds is not None and args.seconds < 0:
        parser.error(f"--seconds must be >= 0, got {args.seconds}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    if args.picture is None:
        folder = args.document.parent / "images" if args.document else args.json.parent
        args.picture = folder / PICTURE
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks for; returns the exit code."""
    args = parse(argv)
    filter_third_party_warnings()
    try:
        results = read_json(args.json)
        if args.report:
            if not results:
                raise FileNotFoundError(f"there are no results in {args.json}")
            names = args.names or list(results)
        else:
            names = args.names or list(CASES)
            if args.keep_memory and not keep_freed_memory():
                raise OSError("--keep-memory needs the GNU C library")
            results.update(measure(names, settings_of(args)))
            results = {name: results[name] for name in CASES if name in results}
            write_json(args.json, results)
        missing = [name for name in names if name not in results]
        if missing:
            raise ValueError(f"{args.json} has no results of {', '.join(missing)}")
        picture = None
        if "assignment" in results:
            picture = args.picture
            plot_assignment(results["assignment"], picture)
        if args.document:
            write_document(args.document, results, picture)
    except (DataError, OSError, ValueError) as error:
        sys.exit(f"benchmarks: {' '.join(str(error).split())}")
    shown = {name: results[name] for name in names}
    print(_text(shown))
    for path in filter(None, (args.json, picture, args.document)):
        print(path)
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """Builds the settings from the command line."""
    seconds = args.seconds
    if seconds is None:
        seconds = 0.0 if args.quick else Settings.seconds
    return Settings(
        quick=args.quick,
        full_size=args.full_size,
        compile=args.compile,
        seconds=seconds,
        min_rounds=2 if args.quick else Settings.min_rounds,
        threads=args.threads,
        device=args.device,
        keep_memory=args.keep_memory,
    )


def measure(names: Sequence[str], settings: Settings) -> dict[str, CaseResult]:
    """Runs cases, with a progress bar."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    machine = describe_machine(settings)  # before there is any load of our own
    plan = [(name, step) for name in names for step in CASES[name].steps(settings)]
    found: dict[str, list[Measurement]] = {name: [] for name in names}
    try:
        with tqdm(plan, unit="step", dynamic_ncols=True) as bar:
            for name, step in bar:
                bar.set_postfix_str(f"{name}: {step.label}")
                found[name] += step.run()
    finally:
        torch.set_num_threads(threads)
    return {
        name: CaseResult(tuple(measurements), machine, dataclasses.asdict(settings))
        for name, measurements in found.items()
    }


def _text(results: dict[str, CaseResult]) -> str:
    parts = [
        f"{CASES[name].TITLE} ({machine_line(result.machine)})\n\n"
        + case_tables(result, markdown=False)
        for name, result in results.items()
    ]
    return "\n\n\n".join([*parts, "Targets\n\n" + targets_table(results, markdown=False)])


if __name__ == "__main__":
    sys.exit(main())
