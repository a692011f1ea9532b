"""Plots assignment time over boxes per image and over image area, for all contestants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from atss_d2.plain.files import replacing

from .machine import machine_line
from .results import CaseResult, Measurement


def plot_assignment(result: CaseResult, path: Path) -> None:
    """Draws the case "assignment"; both axes are logarithmic, bands are quartiles."""
    figure = Figure(figsize=(11, 5), dpi=100, layout="constrained")
    figure.suptitle("Assignment of two images: median time (band: quartiles)")
    left, right = figure.subplots(1, 2, sharey=True)
    _plot(left, result.measurements, "boxes")
    left.set(xlabel="boxes an image", ylabel="milliseconds")
    _plot(right, result.measurements, "pixels")
    right.set(xlabel="pixels of an image")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.supxlabel(machine_line(result.machine), fontsize="xx-small", color="gray")
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _plot(axes: Axes, measurements: Sequence[Measurement], parameter: str) -> None:
    found = [m for m in measurements if m.parameters.get(f"sweep_{parameter}")]
    found.sort(key=lambda m: m.parameters[parameter])
    for name in dict.fromkeys(name for m in found for name in m.samples):
        points = [m for m in found if name in m.samples]
        x = [m.parameters[parameter] for m in points]
        low, high = zip(*([1000 * value for value in m.spread(name)] for m in points))
        (line,) = axes.plot(
            x,
            [1000 * m.median(name) for m in points],
            "o-",
            markersize=4,
            linewidth=2.5 if name == points[0].ours else 1.2,
            label=name,
        )
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2)
    axes.set(xscale="log", yscale="log")
    places = sorted({m.parameters[parameter] for m in found})
    axes.set_xticks(places, [f"{x:g}" if x < 1e5 else f"{x / 1e6:.2g} M" for x in places])
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3, which="both")
