"""The recipes with a quoted number: the zoo, whose configs quote it, and the paper's tables."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablations import ROWS, Row
from atss_d2.config import get_config_path
from atss_d2.plain.suggestions import did_you_mean

_QUOTED = re.compile(r"^Quoted COCO (?:val2017 )?box AP: (.*)$", re.MULTILINE)
_NUMBER = re.compile(r"(?:(val2017|test-dev) )?(\d+\.\d)\b")


@dataclass(frozen=True)
class Recipe(Row):
    """A config to train, or only to evaluate, and the box AP that others report.

    Args:
        quoted_test_dev: Box AP on COCO test-dev, which is not measured here: only its server can.
        evaluates: Name of the recipe whose weights this one evaluates with test-time augmentation;
            None for one that trains.
    """

    quoted_test_dev: float | None = None
    evaluates: str | None = None

    @property
    def config(self) -> str:
        """Name of the config for :func:`atss_d2.get_config`."""
        return self.name if self.table == "coco" else super().config


@functools.cache
def recipes() -> tuple[Recipe, ...]:
    """Returns the zoo, by name, then the rows of Tables 1 to 7 in the order of the paper."""
    folder = Path(get_config_path("coco/atss_R_50_FPN_1x")).parent
    zoo = [_of_config(path) for path in sorted(folder.glob("*.py"))]
    return (*zoo, *(Recipe(row.name, row.label, row.quoted_ap) for row in ROWS))


def _of_config(path: Path) -> Recipe:
    text = path.read_text(encoding="utf-8")
    name = f"coco/{path.stem}"
    label = text.removeprefix('"""').partition("\n")[0].removesuffix(".")
    quoted = quoted_aps(text)
    is_evaluation = "--eval-only" in text
    return Recipe(
        name,
        label,
        quoted.get("val2017"),
        quoted_test_dev=quoted.get("test-dev"),
        evaluates=name.removesuffix("_tta") if is_evaluation else None,
    )


def quoted_aps(text: str) -> dict[str, float]:
    """Reads the AP that the header of a config quotes, by split; of several, the first."""
    line = _QUOTED.search(text)
    quoted: dict[str, float] = {}
    for split, value in _NUMBER.findall(line[1] if line else ""):
        if split or not quoted:  # a later number without a split compares with the one before
            quoted.setdefault(split or "val2017", float(value))
    return quoted


def select(patterns: Sequence[str]) -> list[Recipe]:
    """Returns the recipes whose names match one of the patterns, in the order of the list.

    Args:
        patterns: Such as ``"coco/*_1x"`` or ``"table3/*"``.

    Raises:
        ValueError: A pattern matches no recipe; the message names the nearest ones.
    """
    names = [recipe.name for recipe in recipes()]
    selected = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            hint = did_you_mean(pattern, names, cutoff=0.4, otherwise="--list names all recipes")
            raise ValueError(f"no recipe fits '{pattern}'; {hint}")
        selected.update(found)
    return [recipe for recipe in recipes() if recipe.name in selected]
