"""Measurements, and the JSON file that stores them.

For all measured quantities less is better; a ratio is the peer's value divided by ours.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atss_d2.plain.files import replacing

from .timing import quartiles

SCHEMA = 1


@dataclass(frozen=True)
class Target:
    """A limit that a measurement should meet.

    Args:
        limit: With a peer: the minimum ratio of the peer's median to ours. Without: the maximum of
            our median, in the unit of the measurement.
        peer: Name of a contestant, or None.
    """

    limit: float
    peer: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One quantity of several contestants in one scene.

    Args:
        case: Name of the case.
        scene: Description of what was done.
        quantity: For example "time" or "extra memory".
        unit: "s", "B", "%", "x" or "" for counts.
        samples: Contestant -> values, one for each turn; in the order of the tables.
        ours: The contestant that the others are compared with; None if there is no comparison.
        targets: Limits for the medians.
        notes: Sentences to print below the table.
        text: Text to show unchanged, such as the profiler's table.
        parameters: Numbers that describe the scene, for pictures.
    """

    case: str
    scene: str
    quantity: str
    unit: str
    samples: dict[str, list[float]]
    ours: str | None = None
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()
    text: str = ""
    parameters: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [self.ours, *(target.peer for target in self.targets)]
        for name in names:
            if name is not None and name not in self.samples:
                raise ValueError(f"{self.case}: no contestant is called '{name}'")

    def median(self, name: str) -> float:
        """Returns the median of a contestant."""
        return statistics.median(self.samples[name])

    def spread(self, name: str) -> tuple[float, float]:
        """Returns the first and third quartile of a contestant."""
        return quartiles(self.samples[name])

    def ratio(self, name: str) -> float | None:
        """Returns a contestant's median divided by ours; None if there is nothing to compare."""
        if self.ours is None or self.median(self.ours) == 0:
            return None
        return self.median(name) / self.median(self.ours)

    def ratio_spread(self, name: str) -> tuple[float, float] | None:
        """Returns the smallest and largest ratio that the quartiles of both allow."""
        if self.ours is None or not all(self.samples[self.ours]):
            return None
        (low, high), (our_low, our_high) = self.spread(name), self.spread(self.ours)
        return low / our_high, high / our_low

    def is_met(self, target: Target) -> bool:
        """Returns whether the medians meet the target."""
        value = self.value_of(target)
        return value <= target.limit if target.peer is None else value >= target.limit

    def value_of(self, target: Target) -> float:
        """Returns what a target limits: our median, or the ratio of the peer's to ours."""
        if target.peer is None:
            return self.median(self.ours)
        ratio = self.ratio(target.peer)
        return float("inf") if ratio is None else ratio


@dataclass(frozen=True)
class CaseResult:
    """All measurements of a case, with the machine and the settings."""

    measurements: tuple[Measurement, ...]
    machine: dict[str, Any]
    settings: dict[str, Any]


def write_json(path: Path, results: dict[str, CaseResult]) -> None:
    """Writes the results, by name of the case."""
    content = {
        "schema": SCHEMA,
        "cases": {name: dataclasses.asdict(result) for name, result in results.items()},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, CaseResult]:
    """Reads what :func:`write_json` wrote; returns an empty dict if there is no file.

    Raises:
        ValueError: The file has another schema, or contains no results.
    """
    path = Path(path)
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"it is of schema {content['schema']}, not {SCHEMA}")
        return {name: _case_result(**case) for name, case in content["cases"].items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read the results in {path}, remove it: {error}") from error


def _case_result(
    measurements: Iterable[dict[str, Any]], machine: dict[str, Any], settings: dict[str, Any]
) -> CaseResult:
    return CaseResult(tuple(_measurement(**m) for m in measurements), machine, settings)


def _measurement(
    targets: Iterable[dict[str, Any]], notes: Iterable[str], **fields: Any
) -> Measurement:
    return Measurement(**fields, targets=tuple(Target(**t) for t in targets), notes=tuple(notes))
