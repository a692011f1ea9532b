"""Pictures of the study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .report import Measurement

_QUOTED = "tab:gray"
_OURS = "tab:blue"
_AP_OF_SEEDS = "AP (dots: seeds; bar: ± std)"


def plot_table(measurements: Sequence[Measurement], data: str, title: str, path: Path) -> None:
    """Plots a dot for every row: the quoted AP on the left, ours with its spread on the right."""
    figure = _figure(9, 1.2 + 0.35 * len(measurements), title)
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(measurements))
    for place, measurement in zip(places, measurements, strict=True):
        if measurement.row.quoted_ap is not None:
            left.plot(measurement.row.quoted_ap, place, "D", color=_QUOTED)
        if measurement.results:
            _plot_mean(right, measurement, place, vertical=False)
        else:
            _note(right, place, "not measured")
    left.set(title="quoted, COCO val2017", xlabel="AP")
    left.set_yticks(list(places), [measurement.row.label for measurement in measurements])
    left.invert_yaxis()
    right.set(title=f"ours, {data}", xlabel=_AP_OF_SEEDS)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(x=0.1)
    figure.savefig(path)


def plot_sweep(
    measurements: Sequence[Measurement],
    data: str,
    title: str,
    path: Path,
    *,
    xlabel: str,
    positives: dict[str, Any] | None = None,
) -> None:
    """Plots quoted AP, ours, and positives per object over the number in the name of each row.

    Args:
        measurements: Measurements of the rows of a table, measured or not.
        data: Data set of the study.
        title: Title of the picture.
        path: Where the picture is saved.
        xlabel: What the numbers mean.
        positives: Row -> summary of its positives on generated boxes; None if not counted.
    """
    figure = _figure(12 if positives else 9, 3.6, title)
    axes = figure.subplots(1, 3 if positives else 2)
    x = {m.row.name: int(re.search(r"(\d+)$", m.row.name).group(1)) for m in measurements}
    quoted = [m for m in measurements if m.row.quoted_ap is not None]
    axes[0].plot(
        [x[m.row.name] for m in quoted], [m.row.quoted_ap for m in quoted], "D-", color=_QUOTED
    )
    axes[0].set(title="quoted, COCO val2017", ylabel="AP")
    measured = [m for m in measurements if m.results]
    axes[1].plot([x[m.row.name] for m in measured], [m.mean() for m in measured], color=_OURS)
    for measurement in measured:
        _plot_mean(axes[1], measurement, x[measurement.row.name], vertical=True)
    axes[1].set(title=f"ours, {data}", ylabel=_AP_OF_SEEDS)
    if positives:
        means = [positives[m.row.name]["mean"] for m in measurements]
        axes[2].plot([x[m.row.name] for m in measurements], means, "s-", color="tab:green")
        axes[2].set(title="generated boxes", ylabel="mean positives per object")
    for axis in axes:
        axis.set(xlabel=xlabel)
        axis.set_xticks(list(x.values()))
        axis.set_xlim(min(x.values()) - 0.5, max(x.values()) + 0.5)
        axis.grid(alpha=0.3)
    figure.savefig(path)


def plot_positives(
    scenes: dict[str, dict[str, Any]], path: Path, *, claim: float, titles: dict[str, str]
) -> None:
    """Plots positives per object and the share of objects without any by size, a line per rule.

    Args:
        scenes: Name of the boxes -> rule -> groups by size, see :func:`measure_positives`.
        path: Where the picture is saved.
        claim: The number of positives of ATSS that the paper expects.
        titles: Name of the boxes -> title above them.
    """
    figure = _figure(6 * len(scenes), 6.5, "Positives per object by its size")
    grid = figure.subplots(2, len(scenes), sharex=True, sharey="row", squeeze=False)
    for (mean_axes, share_axes), (name, rules) in zip(grid.T, scenes.items(), strict=True):
        for rule, found in rules.items():
            groups = [group for group in found["by_size"] if group["objects"]]
            x = [(group["from"] * group["to"]) ** 0.5 for group in groups]
            mean_axes.plot(x, [group["mean"] for group in groups], "o-", markersize=4, label=rule)
            share_axes.plot(x, [100 * group["without"] for group in groups], "o-", markersize=4)
        mean_axes.axhline(claim, color="black", linestyle=":", label=f"0.2 k L = {claim:g}")
        mean_axes.set(title=titles.get(name, name), ylabel="mean number of positives")
        share_axes.set(ylabel="objects without a positive (%)", xlabel="sqrt(area) (px)")
        share_axes.set_xscale("log", base=2)
        share_axes.xaxis.set_major_formatter("{x:g}")
    grid[0, 0].legend(fontsize="small")
    for axes in grid.flat:
        axes.grid(alpha=0.3)
    figure.savefig(path)


def _plot_mean(axes: Axes, measurement: Measurement, place: float, *, vertical: bool) -> None:
    """Plots the mean with its spread, and every seed as a small dot."""
    values, spread = measurement.values(), measurement.spread()
    places = [place] * len(values)
    dots, mean = (places, values), (place, measurement.mean())
    if not vertical:
        dots, mean = dots[::-1], mean[::-1]
    axes.plot(*dots, ".", color=_OURS, alpha=0.5)
    error = {"yerr" if vertical else "xerr": spread}
    axes.errorbar(*mean, **error, fmt="o", color=_OURS, capsize=3)


def _note(axes: Axes, place: float, text: str) -> None:
    axes.text(
        0.5,
        place,
        text,
        transform=axes.get_yaxis_transform(),
        ha="center",
        va="center",
        color="gray",
        fontsize="small",
    )


def _figure(width: float, height: float, title: str) -> Figure:
    # Not pyplot, which keeps figures and the backend in global state.
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    figure.suptitle(title)
    return figure
