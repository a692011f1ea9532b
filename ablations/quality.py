"""What grew out of ATSS on the generated scenes, paired by seed with ATSS: docs/quality.md.

python -m ablations --data shapes --rows 'quality/*' --seeds 0 1 2 3 4    # trains; resumable
python -m ablations.quality --cost                    # milliseconds of a step and a detection
python -m ablations.quality --report                  # fills docs/quality.md
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from detectron2.utils.file_io import PathManager
from matplotlib.figure import Figure
from pycocotools.coco import COCO

from atss_d2.commands.errors import Parser, one_sentence
from atss_d2.data import DataError
from atss_d2.engine import load_weights
from atss_d2.plain.files import replacing
from atss_d2.warning_filters import filter_third_party_warnings
from benchmarks.settings import Settings
from benchmarks.timing import Contestant, race

from .configs import load_row_config
from .document import fill_blocks
from .paired import (
    NUM_DRAWS,
    average_precision,
    calibration_error,
    draw_images,
    interval_of_difference,
    match,
)
from .report import Measurement, collect
from .rows import BASELINE, QUALITY_ROWS, Row, select_rows
from .runs import read_results

ROOT = Path(__file__).resolve().parents[1]
DATA = "shapes"
_COST = "quality_cost.json"
_METRICS = ("AP75", "APs", "APm", "APl")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = Parser(
        prog="python -m ablations.quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("output/ablations"), help="folder")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", default=["quality/*"])
    parser.add_argument("--cost", action="store_true", help="measure time on one thread")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each race, with --cost")
    parser.add_argument("--report", action="store_true", help="fill the document, draw the picture")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "quality.md")
    # Parsed separately, because --rows would take them as its values.
    argv = sys.argv[1:] if argv is None else list(argv)
    overrides = [text for text in argv if "=" in text and not text.startswith("-")]
    args = parser.parse_args([text for text in argv if text not in overrides])
    if not (args.cost or args.report):
        parser.error("what to do? Give --cost or --report")
    args.overrides = overrides
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks for; returns the exit code."""
    args = parse(argv)
    filter_third_party_warnings()
    try:
        rows = [row for row in select_rows(args.rows) if row in QUALITY_ROWS]
        if not rows:
            raise ValueError(f"no row of docs/quality.md fits {' '.join(args.rows)}")
        if args.cost:
            print(write_cost(args.output, rows, args.overrides, seconds=args.seconds))
        if args.report:
            for path in write_report(args.document, args.output, rows, args.overrides):
                print(path)
    except (DataError, OSError, KeyError, ValueError) as error:
        sys.exit(f"ablations.quality: {one_sentence(error)}")
    return 0


def write_cost(
    output: Path, rows: Sequence[Row], overrides: Sequence[str] = (), *, seconds: float = 60.0
) -> Path:
    """Times a training step and a detection of every row, in turns, and saves the medians.

    All rows get the same images, and the weights of their first trained seed, if there is one.
    """
    torch.set_num_threads(1)
    measurements = collect(read_results(output, DATA), DATA, rows=rows, overrides=overrides)
    data = load_row_config(BASELINE, DATA).dataloader
    torch.manual_seed(0)
    batch, image = (next(iter(instantiate(node))) for node in (data.train, data.test))
    steps, detections = [], []
    for row in rows:
        cfg = load_row_config(row, DATA, overrides)
        model = instantiate(cfg.model).to(memory_format=torch.channels_last)
        results = measurements[row.name].results
        if results:
            load_weights(model, str(results[0].folder(output) / "model_final.pth"))
        # The rules after their warm-up.
        step = functools.partial(_train, model, batch, cfg.train.max_iter)
        steps.append(Contestant(row.name, step))
        detections.append(Contestant(row.name, functools.partial(_detect, model, image)))
    settings = Settings(seconds=seconds)
    found = {
        kind: {name: 1000 * float(np.median(x)) for name, x in race(racers, settings).items()}
        for kind, racers in (("step_ms", steps), ("detection_ms", detections))
    }
    path = output / DATA / _COST
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    return path


def _train(model: torch.nn.Module, batch: list[dict], iteration: int) -> None:
    """Runs a training step without the optimizer."""
    model.train()
    with EventStorage(iteration):
        sum(model(batch).values()).backward()
    model.zero_grad()


@torch.no_grad()
def _detect(model: torch.nn.Module, images: list[dict]) -> object:
    return model.eval()(images)


def write_report(
    document: Path, output: Path, rows: Sequence[Row], overrides: Sequence[str] = ()
) -> list[Path]:
    """Fills the table and draws the picture of gain against cost.

    Returns:
        The picture and the document.

    Raises:
        ValueError: The baseline was not measured, or the document lacks the block.
    """
    rows = [BASELINE, *(row for row in rows if row != BASELINE)]
    measurements = collect(read_results(output, DATA), DATA, rows=rows, overrides=overrides)
    if not measurements[BASELINE.name].results:
        raise ValueError(
            f"{BASELINE.name} has no results in {output}: run python -m ablations --data {DATA} "
            "--rows 'quality/*' --seeds 0 1 2 3 4 first"
        )
    path = output / DATA / _COST
    cost = json.loads(path.read_text()) if path.exists() else {}
    compared = {
        name: compare(measurement, measurements[BASELINE.name], output)
        for name, measurement in measurements.items()
        if measurement.results
    }
    picture = document.parent / "images" / "quality_gain_and_cost.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(measurements, compared, cost, picture)
    table = table_of(measurements, compared, cost)
    image = f"![Gain over ATSS, and time of a step](images/{picture.name})"
    fill_blocks(document, {"quality rows": f"{table}\n\n{image}"})
    return [picture, document]


def compare(row: Measurement, baseline: Measurement, output: Path) -> dict:
    """Compares a row with the baseline on the seeds that both have.

    Returns:
        ``seeds``, ``gain`` and ``gain75`` (mean, low, high) in points of AP, and ``calibration``.
    """
    ours, theirs = ({x.seed: x for x in part.results} for part in (row, baseline))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise ValueError(f"{row.row.name} and {baseline.row.name} have no seed in common")
    pair = [[_evaluated(of[seed].folder(output)) for seed in seeds] for of in (ours, theirs)]
    found = {"seeds": seeds, "calibration": float(np.mean([run.calibration for run in pair[0]]))}
    for name, thresholds in (("gain", slice(None)), ("gain75", slice(5, 6))):
        aps = [np.stack([run.aps[:, thresholds].mean(axis=1) for run in runs]) for runs in pair]
        low, high = interval_of_difference(*(x[:, 1:] for x in aps))
        found[name] = (float((aps[0][:, 0] - aps[1][:, 0]).mean()), low, high)
    return found


class _Evaluated(NamedTuple):
    aps: np.ndarray  # (1 + B, T) AP of the images as they are, then of each draw
    calibration: float


@functools.cache
def _evaluated(folder: Path) -> _Evaluated:
    matches = match(_annotations(), folder / "inference" / "coco_instances_results.json")
    draws = draw_images(len(matches[0].num_objects), NUM_DRAWS)
    draws = [np.ones_like(draws[0]), *draws]
    aps = np.stack([average_precision(matches, draw) for draw in draws])
    return _Evaluated(aps, calibration_error(matches))


@functools.cache
def _annotations() -> COCO:
    node = load_row_config(BASELINE, DATA).dataloader.test.dataset
    instantiate(node)  # draws the scenes if need be
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(PathManager.get_local_path(MetadataCatalog.get(node.names).json_file))


def table_of(measurements: dict, compared: dict, cost: dict) -> str:
    """Returns the table of all rows in markdown."""
    header = [
        "row",
        "quoted AP, COCO",
        "AP",
        "AP - ATSS [95 %]",
        "AP75 - ATSS [95 %]",
        *_METRICS,
    ]
    header += ["calibration error", "step, ms", "detection, ms", "seeds"]
    lines = [header, ["---"] * len(header)]
    for name, measurement in measurements.items():
        row = measurement.row
        quoted = "" if row.quoted_ap is None else f"{row.quoted_ap:.1f}"
        label = f"[{row.label}](../configs/{row.small_config}.py)"
        if name not in compared:
            lines.append([label, quoted, "not measured", *[""] * (len(header) - 3)])
            continue
        found = compared[name]
        gains = (
            ["", ""] if row == BASELINE else [gain_text(found["gain"]), gain_text(found["gain75"])]
        )
        means = [f"{measurement.mean(metric):.1f}" for metric in _METRICS]
        times = [
            f"{cost[kind][name]:.0f}" if name in cost.get(kind, {}) else ""
            for kind in ("step_ms", "detection_ms")
        ]
        spread = measurement.spread()
        mean = f"{measurement.mean():.1f}" + ("" if spread is None else f" ± {spread:.1f}")
        calibration = f"{found['calibration']:.1f}"
        lines.append([label, quoted, mean, *gains, *means, calibration, *times])
        lines[-1].append(str(len(found["seeds"])))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def gain_text(values: tuple[float, float, float]) -> str:
    """Formats a difference and its interval, in bold if the interval excludes 0."""
    mean, low, high = values
    text = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def draw(measurements: dict, compared: dict, cost: dict, path: Path) -> None:
    """Draws the gain of each row over ATSS, with its interval, beside the time of a step."""
    names = [name for name in measurements if name in compared][::-1]  # the first row on top
    steps = cost.get("step_ms", {})
    figure = Figure(figsize=(9, 1 + 0.36 * len(names)), layout="constrained", dpi=120)
    gains, times = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for place, name in enumerate(names):
        mean, low, high = compared[name]["gain"] if name != BASELINE.name else (0.0, 0.0, 0.0)
        color = "tab:green" if low > 0 else "tab:red" if high < 0 else "tab:gray"
        gains.errorbar(
            mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3, color=color
        )
        if name in steps and BASELINE.name in steps:
            ratio = steps[name] / steps[BASELINE.name]
            bar = times.barh(place, ratio, height=0.6, color="tab:blue")
            times.bar_label(bar, fmt="%.1f", padding=3)
    gains.axvline(0, color="black", linewidth=1)
    gains.set_yticks(range(len(names)), [measurements[name].row.label for name in names])
    gains.set(xlabel="AP - ATSS's (bar: 95 % interval)")
    times.set(xlabel="time of a training step / ATSS's")
    for axes in (gains, times):
        axes.grid(axis="x", alpha=0.3)
    times.margins(x=0.15)
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
