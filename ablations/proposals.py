"""The RPNs of docs/integration.md: recall of their proposals by object size, and AP.

python -m ablations --data shapes --rows 'rpn/*' --seeds 0 1 2 3 4    # trains; resumable
python -m ablations.proposals --measure        # recall of the proposals of every finished run
python -m ablations.proposals --report         # fills docs/integration.md
python -m ablations.proposals --config-file CONFIG --weights FILE    # of any R-CNN: prints
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atss_d2.commands.errors import Parser, one_sentence
from atss_d2.config import load_view
from atss_d2.data import DataError
from atss_d2.plain.files import replacing
from atss_d2.visualization import read_metrics
from atss_d2.warning_filters import filter_third_party_warnings

from .configs import load_row_config
from .document import fill_blocks
from .paired import NUM_DRAWS, draw_images, interval_of_difference
from .quality import compare, gain_text
from .recall import LIMITS, SIZES, Coverage, average_recall, measure
from .report import Measurement, collect
from .rows import RPN_ROWS, Row
from .runs import read_results

ROOT = Path(__file__).resolve().parents[1]
DATA = "shapes"
_FILE = "proposals.npz"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m ablations.proposals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output/ablations"), help="folder")
    parser.add_argument("--measure", action="store_true", help="recall of the finished runs")
    parser.add_argument("--report", action="store_true", help="fill the document")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "integration.md")
    parser.add_argument("--config-file", help="an R-CNN to measure")
    parser.add_argument("--weights", help="its checkpoint; default: that of the config")
    args = parser.parse_args(argv)
    if not (args.measure or args.report or args.config_file):
        parser.error("what to do? Give --measure, --report or --config-file")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks for; returns the exit code."""
    args = parse(argv)
    filter_third_party_warnings()
    try:
        if args.config_file:
            view = load_view(args.config_file)
            print(text_of(measure(view.cfg, args.weights or view.get(view.weights_key))))
        if args.measure:
            for path in measure_runs(args.output):
                print(path, flush=True)
        if args.report:
            print(write_report(args.document, args.output))
    except (DataError, OSError, KeyError, ValueError) as error:
        sys.exit(f"ablations.proposals: {one_sentence(error)}")
    return 0


def text_of(coverage: Coverage) -> str:
    """Returns a table of AR by number of proposals and size, in markdown."""
    lines = [["AR", *SIZES], ["---"] * (1 + len(SIZES))]
    for limit in LIMITS:
        values = [f"{average_recall(coverage, size, limit):.1f}" for size in SIZES]
        lines.append([f"@{limit}", *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_runs(output: Path) -> Iterator[Path]:
    """Measures the finished runs that were not measured yet; yields the files."""
    torch.set_num_threads(1)
    for measurement in collect(read_results(output, DATA), DATA, rows=RPN_ROWS).values():
        for result in measurement.results:
            folder = result.folder(output)
            if (folder / _FILE).exists():
                continue
            cfg = load_row_config(measurement.row, DATA, result.overrides)
            coverage = measure(cfg, str(folder / "model_final.pth"))
            arrays = {
                f"{name}_{size}": array
                for size, parts in coverage.items()
                for name, array in zip(("images", "overlaps"), parts, strict=True)
            }
            with replacing(folder / _FILE) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)
            yield folder / _FILE


def read_coverage(path: Path) -> Coverage:
    """Reads what :func:`measure_runs` wrote."""
    with np.load(path) as arrays:
        return {size: (arrays[f"images_{size}"], arrays[f"overlaps_{size}"]) for size in SIZES}


def write_report(document: Path, output: Path) -> Path:
    """Fills the table of the RPNs.

    Raises:
        ValueError: No row was measured together with its baseline, or the document lacks the block.
    """
    measurements = collect(read_results(output, DATA), DATA, rows=RPN_ROWS)
    lines = [line for row in RPN_ROWS if (line := _line(row, measurements, output))]
    if not lines:
        raise ValueError(
            f"no run of rpn/* is measured in {output}: run python -m ablations --data {DATA} "
            "--rows 'rpn/*' --seeds 0 1 2 3 4, then python -m ablations.proposals --measure"
        )
    header = ["row", *(f"AR@{limit}" for limit in LIMITS), "AR@100 s / m / l"]
    header += ["AR@1000 s / m / l", "AR@100 - Detectron2's [95 %]", "AR@1000 - Detectron2's [95 %]"]
    header += ["AP", "AP - Detectron2's [95 %]", "mask AP", "seeds"]
    table = [header, ["---"] * len(header), *lines]
    fill_blocks(document, {"rpn": "\n".join(f"| {' | '.join(line)} |" for line in table)})
    return document


def _line(row: Row, measurements: dict[str, Measurement], output: Path) -> list[str] | None:
    """Returns the cells of a row; None if it or its baseline has no measured run."""
    ours = _measured(measurements[row.name], output)
    theirs = _measured(measurements[baseline_of(row)], output)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    # All cells are of the same seeds.
    measurement, baseline = (
        dataclasses.replace(x, results=tuple(r for r in x.results if r.seed in seeds))
        for x in (measurements[row.name], measurements[baseline_of(row)])
    )

    def mean(size: str, limit: int) -> float:
        return float(np.mean([average_recall(ours[seed], size, limit) for seed in seeds]))

    def by_size(limit: int) -> str:
        return " / ".join(f"{mean(size, limit):.1f}" for size in SIZES if size != "all")

    cells = [f"[{row.label}](../configs/{row.small_config}.py)"]
    cells += [f"{mean('all', limit):.1f}" for limit in LIMITS]
    cells += [by_size(100), by_size(1000)]
    compared = ["", "", ""]
    if row.name != baseline_of(row):
        pairs = [(ours[seed], theirs[seed]) for seed in seeds]
        gain = compare(measurement, baseline, output)["gain"]
        compared = [gain_text(x) for x in (_gain(pairs, 100), _gain(pairs, 1000), gain)]
    masks = [_mask_ap(x.folder(output)) for x in measurement.results]
    mask_ap = "" if None in masks else f"{np.mean(masks):.1f}"
    return [
        *cells,
        *compared[:2],
        f"{measurement.mean():.1f}",
        compared[2],
        mask_ap,
        str(len(seeds)),
    ]


def baseline_of(row: Row) -> str:
    """Returns the name of the row with Detectron2's RPN in the same detector."""
    return row.name.partition("_atss")[0]


def _measured(measurement: Measurement, output: Path) -> dict[int, Coverage]:
    """Returns the coverage by seed, of the runs that have it."""
    paths = {x.seed: x.folder(output) / _FILE for x in measurement.results}
    return {seed: read_coverage(path) for seed, path in paths.items() if path.exists()}


def _gain(pairs: Sequence[tuple[Coverage, Coverage]], limit: int) -> tuple[float, float, float]:
    """Returns the mean difference of AR with its interval, over draws of seeds and images."""
    num_images = 1 + max(int(x["all"][0].max()) for pair in pairs for x in pair)
    draws = draw_images(num_images, NUM_DRAWS)
    drawn = [
        np.array([[average_recall(x[side], "all", limit, draw) for draw in draws] for x in pairs])
        for side in (0, 1)
    ]
    full = [average_recall(x, "all", limit) - average_recall(y, "all", limit) for x, y in pairs]
    return (float(np.mean(full)), *interval_of_difference(*drawn))


def _mask_ap(folder: Path) -> float | None:
    rows: Any = read_metrics(folder / "metrics.json").values()
    return next((row["segm/AP"] for row in reversed(list(rows)) if "segm/AP" in row), None)


if __name__ == "__main__":
    sys.exit(main())
