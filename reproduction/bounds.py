"""Bounds on the first iterations of a recipe: derived from the losses' definitions, or measured."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from . import theory

MEASURED = Path(__file__).with_name("measured_bounds.json")
DERIVED = "derived"
LOSSES = ("loss_cls", "loss_box_reg", "loss_centerness")
GRADIENT = "atss/gradient_norm"
POSITIVES = "atss/num_positives"
MEASURED_NAMES = (*LOSSES, GRADIENT, POSITIVES)
MEASURED_AT = (10, 20, 30, 40, 50, 60)
# What is measured on a few seeds is widened on both sides: by so many of its ranges, and by this
# share of its values.
_RANGES, _SHARE = 1.5, 0.03
_START = 5  # iterations in which nothing has been learned yet
_EXPLODED = 10.0  # times the first value


@dataclass(frozen=True)
class Bound:
    """Limits of a logged number in some iterations. NaN is outside of all.

    Args:
        name: Key of ``metrics.json``.
        first: First iteration.
        last: Last iteration.
        low: Smallest value.
        high: Largest value.
        source: Where the limits come from.
        hint: What usually breaks this bound.
    """

    name: str
    first: int
    last: int
    low: float
    high: float
    source: str
    hint: str = ""

    def broken_by(self, row: dict[str, float]) -> str | None:
        """Returns in one sentence how a row of ``metrics.json`` breaks the bound, if it does."""
        value = row.get(self.name)
        if value is None or not self.first <= row["iteration"] <= self.last:
            return None
        if self.low <= value <= self.high:
            return None
        limit = f"below {self.low:.4g}" if value < self.low else f"above {self.high:.4g}"
        if math.isnan(value):
            limit = "not a number"
        hint = f": {self.hint}" if self.hint else ""
        return (
            f"iteration {row['iteration']}: {self.name} {value:.4g} is {limit} ({self.source})"
            f"{hint}"
        )


def derived(
    cfg: DictConfig, first_row: dict[str, float], *, logits: int, iterations: int
) -> list[Bound]:
    """Returns the bounds that follow from the definitions of the losses.

    Args:
        cfg: The recipe.
        first_row: The first row of ``metrics.json``, with the number of positives per image.
        logits: R K, class logits of an image.
        iterations: How many iterations are looked at; what must be learned by the last of them is
            only asked of at least 300.
    """
    bounds = [
        Bound("total_loss", 0, iterations, 0.0, 1e3, DERIVED, "the losses explode"),
        Bound(GRADIENT, 0, iterations, 1e-6, 1e4, DERIVED, "the gradient explodes or vanishes"),
    ]
    positives = first_row.get(POSITIVES, 0.0)
    criterion = cfg.model.get("criterion")
    if criterion is not None or not positives:  # of losses that are not ours nothing is known
        return bounds
    alpha = cfg.model.get("focal_loss_alpha", 0.25)
    gamma = cfg.model.get("focal_loss_gamma", 2.0)
    start = theory.focal_loss_of_constant(theory.PRIOR, logits / positives, alpha, gamma)
    blind, score = theory.blind_focal_loss(logits / positives, alpha, gamma)
    is_giou = cfg.model.get("box_reg_loss_type", "giou").endswith("iou")
    weight = cfg.model.get("box_reg_loss_weight", 2.0)
    quality_weight = cfg.model.get("centerness_loss_weight", 1.0)
    quality = quality_weight * theory.BLIND_CENTERNESS
    classes = "are prior, classes and number of positives as the recipe has them?"
    bounds += [
        Bound("loss_cls", 0, _START, 0.8 * start, 1.6 * start, f"{DERIVED}: {start:.3g}", classes),
        Bound("loss_cls", 0, iterations, 0.0, 3 * start, DERIVED, "it diverges"),
        Bound("loss_centerness", 0, _START, 0.9 * quality, 1.1 * quality, f"{DERIVED}: ln 2"),
        Bound("loss_centerness", 0, iterations, 0.2 * quality, 1.3 * quality, DERIVED),
    ]
    if is_giou:
        largest = theory.LARGEST_GIOU_LOSS * weight
        bounds += [Bound("loss_box_reg", 0, iterations, 0.0, largest, f"{DERIVED}: 2 (1 - GIoU)")]
        bounds += [
            Bound("loss_box_reg", 0, _START, 0.1 * largest, 0.6 * largest, DERIVED, "which boxes?")
        ]
    if iterations >= 300:
        blindly = f"{DERIVED}: a blind head reaches {blind:.3g} with a score of {score:.2g}"
        unseen = "the features are of no use; were the pretrained weights loaded?"
        last = iterations - 1
        bounds += [Bound("loss_cls", last, last, 0.0, 0.95 * blind, blindly, unseen)]
        if is_giou and "loss_box_reg" in first_row:
            high = 0.9 * first_row["loss_box_reg"]
            bounds += [Bound("loss_box_reg", last, last, 0.0, high, f"{DERIVED}: it must fall")]
    return bounds


def measured(name: str) -> list[Bound]:
    """Returns the bounds that were measured for a recipe on several seeds; [] without any."""
    found = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    recipe = found.get(name, {"seeds": [], "values": {}})
    source = f"measured on {len(recipe['seeds'])} seeds"
    bounds = []
    for key, at in recipe["values"].items():
        for iteration, (low, high) in at.items():
            width = _RANGES * (high - low)
            least, most = low - width - _SHARE * abs(low), high + width + _SHARE * abs(high)
            bounds.append(Bound(key, int(iteration), int(iteration), least, most, source))
    return bounds


def record(name: str, runs: dict[int, Sequence[dict[str, float]]]) -> None:
    """Writes the smallest and largest values of healthy runs, from which bounds are made.

    Args:
        name: Name of the recipe.
        runs: Seed -> rows of its ``metrics.json``.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for key in MEASURED_NAMES:
        for iteration in MEASURED_AT:
            found = [x for rows in runs.values() if (x := _at(rows, iteration, key)) is not None]
            if len(found) == len(runs):
                extremes = [round(min(found), 5), round(max(found), 5)]
                values.setdefault(key, {})[str(iteration)] = extremes
    everything = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    everything[name] = {"seeds": sorted(runs), "values": values}
    MEASURED.write_text(json.dumps(dict(sorted(everything.items())), indent=1) + "\n")


def _at(rows: Iterable[dict[str, float]], iteration: int, key: str) -> float | None:
    return next((row.get(key) for row in rows if row["iteration"] == iteration), None)
