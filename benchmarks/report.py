"""Tables of the measurements, for the terminal and for markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tabulate import tabulate

from .results import CaseResult, Measurement, Target

_HEADERS = ("scene", "what", "who", "median", "quartiles", "/ ours", "spread", "target")
_TARGET_HEADERS = ("case", "scene", "what", "target", "measured", "verdict")


def case_tables(result: CaseResult, *, markdown: bool) -> str:
    """Returns all results of a case: a table, printed text, and notes."""
    rows: list[tuple[str, ...]] = []
    for measurement in result.measurements:
        rows += _rows(measurement)
    parts = [_table(rows, _HEADERS, markdown)] if rows else []
    for measurement in result.measurements:
        if measurement.text:
            text = f"```\n{measurement.text}\n```" if markdown else measurement.text
            parts.append(f"{measurement.scene}:\n\n{text}")
    notes = dict.fromkeys(note for m in result.measurements for note in m.notes)
    if notes:
        parts.append("\n".join(f"- {note}" if markdown else note for note in notes))
    if result.settings["quick"]:
        parts.append("A quick run: the sizes are tiny, and the numbers say nothing.")
    return "\n\n".join(parts)


def summary_table(result: CaseResult) -> str:
    """Returns our median and the others' ratios in markdown, one row per comparison."""
    rows = [
        (
            m.scene,
            m.quantity,
            format_value(m.median(m.ours), m.unit),
            ", ".join(
                f"{name} {m.ratio(name):.2f}x"
                for name in m.samples
                if name != m.ours and m.ratio(name) is not None
            ),
        )
        for m in result.measurements
        if m.ours is not None
    ]
    rows = [row for row in rows if row[3]]
    return _table(rows, ("scene", "what", "ours", "others / ours"), markdown=True)


def targets_table(results: dict[str, CaseResult], *, markdown: bool) -> str:
    """Returns a table of all targets with their measured values."""
    rows = [
        (
            name,
            measurement.scene,
            measurement.quantity,
            _target(measurement, target),
            _value(measurement, target),
            verdict(measurement, target),
        )
        for name, result in results.items()
        for measurement in result.measurements
        for target in measurement.targets
    ]
    return _table(rows, _TARGET_HEADERS, markdown) if rows else "No targets in what was measured."


def verdict(measurement: Measurement, target: Target) -> str:
    """Returns "met", or by how much the target is missed."""
    if measurement.is_met(target):
        return "met"
    value = measurement.value_of(target)
    if target.limit == 0:
        return f"falls short by {format_value(value, measurement.unit)}"
    return f"falls short by {100 * abs(value - target.limit) / target.limit:.1f} %"


def format_value(value: float, unit: str) -> str:
    """Formats a number with its unit."""
    if unit == "s":
        for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
            if value * factor >= 1 or name == "µs":
                return f"{_digits(value * factor)} {name}"
    if unit == "B":
        return f"{_digits(value / 1e6)} MB"
    if unit == "x":
        return f"{value:.2f}x"
    return f"{_digits(value)} {unit}".strip()


def _digits(value: float) -> str:
    """Formats a number with three significant digits."""
    if value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rows(measurement: Measurement) -> list[tuple[str, ...]]:
    rows = []
    for i, (name, values) in enumerate(measurement.samples.items()):
        unit = measurement.unit
        has_spread = len(values) > 1
        ratio, ratio_spread = measurement.ratio(name), None
        if has_spread and name != measurement.ours:
            ratio_spread = measurement.ratio_spread(name)
        targets = [
            f"{_target(measurement, target)}: {verdict(measurement, target)}"
            for target in measurement.targets
            if name == (target.peer or measurement.ours)
        ]
        rows.append(
            (
                "" if i else measurement.scene,
                "" if i else measurement.quantity,
                name,
                format_value(measurement.median(name), unit),
                _range(format_value(v, unit) for v in measurement.spread(name) if has_spread),
                "" if ratio is None else f"{ratio:.2f}x",
                _range(f"{v:.2f}" for v in ratio_spread or ()),
                "; ".join(targets),
            )
        )
    return rows


def _range(ends: Iterable[str]) -> str:
    return " to ".join(ends)


def _target(measurement: Measurement, target: Target) -> str:
    if target.peer is None:
        return f"<= {format_value(target.limit, measurement.unit)}"
    return f">= {target.limit:g}x"


def _value(measurement: Measurement, target: Target) -> str:
    value = measurement.value_of(target)
    if target.peer is None:
        return format_value(value, measurement.unit)
    return f"{target.peer}: {value:.2f}x"


def _table(rows: Iterable[tuple[Any, ...]], headers: tuple[str, ...], markdown: bool) -> str:
    # tabulate would treat "12" in one row and "12 ms" in another as different types.
    return tabulate(
        rows, headers, tablefmt="github" if markdown else "simple", disable_numparse=True
    )
