"""Plots the curves of a training run from Detectron2's ``metrics.json``."""

import json
import logging
import math
import os
import re
from pathlib import Path

import numpy as np
from detectron2.utils.file_io import PathManager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

_LOSSES = {
    "total_loss": "black",
    "loss_cls": "tab:blue",
    "loss_box_reg": "tab:orange",
    "loss_centerness": "tab:green",
}
_AP_COLORS = {"AP": "tab:blue", "AP50": "tab:orange", "AP75": "tab:green"}
# Detectron2 writes "bbox/AP", and "<data set>/bbox/AP" with several test sets.
_AP_KEY = re.compile(r"(?:(?P<dataset>.+)/)?bbox/(?P<metric>AP|AP50|AP75)")
_LEVEL_KEY = re.compile(r"atss/num_positives_(?P<level>.+)")


def read_metrics(metrics_json: str | os.PathLike) -> dict[int, dict[str, float]]:
    """Reads Detectron2's ``metrics.json``: one JSON object per line, appended by every run.

    A run that is resumed or restarted in the same folder overrides an earlier run's rows for the
    same and later iterations. Lines truncated when a run was killed are skipped with a warning.

    Args:
        metrics_json: Path of the file.

    Returns:
        Iteration -> scalars by name, in the order of the iterations.

    Raises:
        ValueError: No line could be read.
    """
    rows: dict[int, dict[str, float]] = {}
    num_skipped, last_training_row = 0, -1
    with PathManager.open(os.fspath(metrics_json)) as f:
        for line in filter(None, map(str.strip, f)):
            try:
                row = json.loads(line)
                iteration = int(row.pop("iteration"))
            except (ValueError, KeyError, AttributeError, TypeError):
                num_skipped += 1
                continue
            if "total_loss" in row:
                if iteration <= last_training_row:  # resumed: replaces the rows from here on
                    rows = {i: x for i, x in rows.items() if i < iteration}
                last_training_row = iteration
            rows.setdefault(iteration, {}).update(row)
    if num_skipped:
        logger.warning(f"{metrics_json}: skipped {num_skipped} incomplete lines")
    if not rows:
        raise ValueError(f"'{metrics_json}' holds no metrics: did training log anything?")
    return dict(sorted(rows.items()))


def plot_training_curves(
    metrics_json: str | os.PathLike, output_png: str | os.PathLike, *, small: bool = False
) -> Path:
    """Plots the curves of a training run.

    Plots losses (smoothed, and faint as logged), AP at the evaluations, learning rate, and ATSS's
    statistics of positives, as far as the file has them.

    Args:
        metrics_json: File written by Detectron2's ``JSONWriter``.
        output_png: The picture; its folder is created.
        small: Whether to plot only losses and AP, for a README.

    Returns:
        Path of the picture.

    Raises:
        ValueError: The file has no metrics.
    """
    figure = _draw(read_metrics(metrics_json), small=small)
    output_png = Path(output_png)
    output_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output_png)
    return output_png


def _draw(rows: dict[int, dict[str, float]], *, small: bool) -> Figure:
    # Not pyplot, which keeps figures and the backend in global state.
    figure = Figure(figsize=(8, 3) if small else (12, 7.5), dpi=100, layout="constrained")
    axes = figure.subplots(1 if small else 2, 2, squeeze=False)
    _plot_losses(axes[0, 0], rows)
    _plot_ap(axes[0, 1], rows)
    if not small:
        _plot_learning_rate(axes[1, 0], rows)
        _plot_positives(axes[1, 1], rows)
    for axis in axes.flat:
        axis.set_xlabel("iteration")
        axis.set_xlim(0, max(max(rows), 1))
        axis.grid(alpha=0.3)
    return figure


def _curve(rows: dict[int, dict[str, float]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the iterations and finite values of a scalar."""
    points = [(i, row[key]) for i, row in rows.items() if key in row and math.isfinite(row[key])]
    iterations, values = np.asarray(points, dtype=float).reshape(-1, 2).T
    return iterations, values


def _smooth(values: np.ndarray) -> np.ndarray:
    """Returns the mean over a window of a tenth of the curve, shorter at the ends."""
    window = np.ones(max(len(values) // 10, 1))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _keys(rows: dict[int, dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows.values() for key in row))


def _note(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color="gray")


def _plot(axis: Axes, iterations: np.ndarray, values: np.ndarray, **style) -> None:
    """Calls ``axis.plot``, with a marker for a single point, which would be invisible."""
    axis.plot(iterations, values, **({"marker": "."} if len(values) == 1 else {}) | style)


def _plot_losses(axis: Axes, rows: dict[int, dict[str, float]]) -> None:
    axis.set(title="Losses (faint: as logged)", ylabel="loss")
    highest = 0.0
    for key, color in _LOSSES.items():
        iterations, values = _curve(rows, key)
        if len(values):
            smoothed = _smooth(values)
            # Without the spikes of the first iterations, which would flatten the rest.
            highest = max(highest, np.quantile(values, 0.98), smoothed[-1])
            _plot(axis, iterations, values, color=color, alpha=0.25, linewidth=1)
            _plot(axis, iterations, smoothed, color=color, label=key)
    if not axis.lines:
        _note(axis, "no losses logged")
        return
    axis.set_ylim(0, 1.1 * highest or 1)
    axis.legend(fontsize="small", loc="upper right")


def _plot_ap(axis: Axes, rows: dict[int, dict[str, float]]) -> None:
    axis.set(title="Average precision at evaluations", ylabel="AP (%)")
    keys = [match for key in _keys(rows) if (match := _AP_KEY.fullmatch(key))]
    datasets = list(dict.fromkeys(match["dataset"] for match in keys))
    highest = 0.0
    for match in sorted(keys, key=lambda match: list(_AP_COLORS).index(match["metric"])):
        iterations, values = _curve(rows, match[0])
        if len(values):
            highest = max(highest, values.max())
            place = datasets.index(match["dataset"])
            name = " ".join(filter(None, (match["dataset"], match["metric"])))
            axis.plot(
                iterations,
                values,
                color=_AP_COLORS[match["metric"]],
                linestyle=("-", "--", ":", "-.")[place % 4],
                marker="osD^"[place % 4],
                markersize=4,
                clip_on=False,  # the last evaluation is on the frame
                label=f"{name} (last {values[-1]:.1f})",
            )
    if not axis.lines:
        _note(axis, "no evaluation logged")
        return
    axis.set_ylim(0, 1.3 * highest or 1)  # room for the legend
    axis.legend(fontsize="small", loc="upper left", ncols=len(datasets))


def _plot_learning_rate(axis: Axes, rows: dict[int, dict[str, float]]) -> None:
    axis.set(title="Learning rate", ylabel="learning rate")
    iterations, values = _curve(rows, "lr")
    if not len(values):
        _note(axis, "no learning rate logged")
        return
    _plot(axis, iterations, values, color="black")
    axis.set_ylim(0, 1.1 * values.max() or 1)
    axis.ticklabel_format(axis="y", scilimits=(-2, 3))


def _plot_positives(axis: Axes, rows: dict[int, dict[str, float]]) -> None:
    axis.set(title="ATSS: label assignment", ylabel="count per image")
    styles = {"atss/num_positives": ("positives", "black", "-")}
    levels = sorted(match["level"] for key in _keys(rows) if (match := _LEVEL_KEY.fullmatch(key)))
    for i, level in enumerate(levels):
        styles[f"atss/num_positives_{level}"] = (f"positives on {level}", f"C{i}", "-")
    styles["atss/gt_without_positive"] = ("boxes without a positive", "deeppink", "--")
    for key, (label, color, linestyle) in styles.items():
        iterations, values = _curve(rows, key)
        if len(values):
            style = {"color": color, "linestyle": linestyle, "label": label, "linewidth": 1.2}
            _plot(axis, iterations, _smooth(values), **style)
    top, lines = axis, list(axis.lines)
    iterations, values = _curve(rows, "atss/mean_threshold")
    if len(values):
        top = axis.twinx()
        top.set(ylabel="mean IoU threshold", ylim=(0, 1))
        _plot(top, iterations, _smooth(values), color="gray", linestyle=":", label="mean threshold")
        lines += top.lines
    if not lines:
        _note(axis, "nothing logged about positives")
        return
    # Counts per level differ by orders of magnitude and may be 0. The legend needs room above.
    axis.set_yscale("symlog", linthresh=1)
    axis.set_ylim(0, 100 * max(axis.dataLim.y1, 1))
    # Put the legend on the axis that is drawn last, so that no curve crosses it.
    top.legend(handles=lines, fontsize="small", ncols=3, loc="upper center")
