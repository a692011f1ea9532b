"""Results of the study, row by row: means over seeds, and their tables in markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .configs import row_hash
from .rows import ROWS, Row
from .runs import METRICS, Result

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Measurement:
    """Results of all seeds of one row.

    Args:
        row: The row.
        results: One for each seed; empty for a row that was not measured.
    """

    row: Row
    results: tuple[Result, ...]

    def values(self, metric: str = "AP") -> list[float]:
        """Returns one value per seed, for the seeds that have it."""
        values = (result.metrics[metric] for result in self.results)
        return [value for value in values if value is not None]

    def mean(self, metric: str = "AP") -> float | None:
        """Returns the mean over the seeds."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def spread(self, metric: str = "AP") -> float | None:
        """Returns the standard deviation over the seeds (n - 1); None for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def seconds(self) -> float | None:
        """Returns the median time of the runs that were not interrupted."""
        seconds = [result.seconds for result in self.results if result.seconds is not None]
        return statistics.median(seconds) if seconds else None


def collect(
    results: Iterable[Result],
    data: str,
    *,
    rows: Sequence[Row] = ROWS,
    overrides: Sequence[str] = (),
) -> dict[str, Measurement]:
    """Finds the results of every row that match its current config.

    Args:
        results: See :func:`read_results`.
        data: Data set of the results.
        rows: Rows of interest.
        overrides: The ``key=value`` that the runs were started with.

    Returns:
        Name of the row -> its measurement, in the order of ``rows``.
    """
    by_config: dict[str, dict[int, Result]] = {}
    for result in results:
        by_config.setdefault(result.config, {})[result.seed] = result
    measurements = {}
    for row in rows:
        seeds = by_config.get(row_hash(row, data, tuple(overrides)), {})
        measurements[row.name] = Measurement(row, tuple(seeds[seed] for seed in sorted(seeds)))
    return measurements


def table_of(measurements: Iterable[Measurement], data: str) -> str:
    """Returns a table of the paper in markdown, with the quoted number and ours."""
    header = ["row", "quoted AP, COCO", f"AP, {data}", "seeds", *METRICS[1:], "seconds"]
    lines = [header, ["---"] * len(header)]
    for measurement in measurements:
        row = measurement.row
        quoted = "" if row.quoted_ap is None else f"{row.quoted_ap:.1f}"
        label = f"[{row.label}](../configs/{row.config}.py)"
        if not measurement.results:
            lines.append([label, quoted, NOT_MEASURED, *[""] * (len(header) - 3)])
            continue
        cells = [_number(measurement.mean(metric)) for metric in METRICS[1:]]
        num_seeds = str(len(measurement.results))
        seconds = _number(measurement.seconds(), digits=0)
        lines.append([label, quoted, mean_and_spread(measurement), num_seeds, *cells, seconds])
    return _markdown(lines)


def mean_and_spread(measurement: Measurement) -> str:
    """Formats mean and spread as ``"12.3 ± 0.4"``; for one seed the mean alone."""
    spread = measurement.spread()
    return _number(measurement.mean()) + ("" if spread is None else f" ± {spread:.1f}")


def positives_table(rules: dict[str, Any]) -> str:
    """Returns a table of mean positives (and share of objects without any) by size and rule."""
    lines = [["sqrt(area), px", "objects", *rules], ["---"] * (len(rules) + 2)]
    groups = zip(*(rule["by_size"] for rule in rules.values()))
    for group in (g for g in groups if g[0]["objects"]):
        size = f"{group[0]['from']:.0f} to {group[0]['to']:.0f}"
        lines.append([size, str(group[0]["objects"]), *map(_positives, group)])
    summaries = [rule["summary"] for rule in rules.values()]
    lines.append(["all", str(summaries[0]["objects"]), *map(_positives, summaries)])
    return _markdown(lines)


def _positives(summary: dict[str, Any]) -> str:
    return f"{summary['mean']:.1f} ({100 * summary['without']:.0f} %)"


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
