"""The state of a data set during checking: its content, its files and the findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..categories import Categories
from .images import ImageFile
from .reading import Source

_NUM_EXAMPLES = 3
_INFLECTIONS = (
    ("{s}", "", "s"),
    ("{es}", "", "es"),
    ("{are}", "is", "are"),
    ("{have}", "has", "have"),
)


@dataclass(frozen=True)
class Finding:
    """A problem: its count, a description, up to three examples, and the action taken."""

    count: int
    what: str
    examples: tuple[str, ...]
    action: str = ""

    def __str__(self) -> str:
        examples = f", e.g. {', '.join(self.examples)}" if self.examples else ""
        action = f": {self.action}" if self.action else ""
        return f"{self.count} {self.phrase}{examples}{action}"

    @property
    def phrase(self) -> str:
        """``what`` with the right inflections: "image{s} {are}" is "image is" or "images are"."""
        text = self.what
        for mark, singular, plural in _INFLECTIONS:
            text = text.replace(mark, singular if self.count == 1 else plural)
        return text


@dataclass
class Checked:
    """A data set that can be trained on.

    Args:
        content: COCO's dict, with problems fixed.
        source: The data set that it was made from.
        files: Image files by image id.
        findings: The problems found.
        is_changed: Whether ``content`` differs from the source, so that it must be written.
    """

    content: dict[str, Any]
    source: Source
    files: dict[Any, ImageFile]
    findings: list[Finding] = field(default_factory=list)
    is_changed: bool = False

    @property
    def categories(self) -> Categories:
        """The categories, sorted by id as Detectron2 sorts them."""
        return self.content["categories"]

    def report(
        self,
        cases: Iterable[str],
        what: str,
        action: str = "",
        *,
        changes: bool = False,
    ) -> int:
        """Adds a finding if there are cases; returns their number."""
        cases = list(cases)
        if cases:
            examples = tuple(dict.fromkeys(cases))[:_NUM_EXAMPLES]
            self.findings.append(Finding(len(cases), what, examples, action))
            self.is_changed |= changes
        return len(cases)
