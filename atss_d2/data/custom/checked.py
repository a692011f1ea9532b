"""The state of a data set during checking: its content, its files and the findings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..categories import Categories
from ..checks.findings import KINDS, WARNING, Example, Finding, first_examples
from .images import ImageFile
from .reading import Source


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
        cases: Iterable[str | Example],
        what: str,
        action: str = "",
        *,
        changes: bool = False,
    ) -> int:
        """Adds a finding if there are cases; returns their number.

        Args:
            cases: One text or example a case.
            what: A code of :data:`~atss_d2.data.checks.findings.KINDS`, or a description.
            action: What was done; by default the fix of the code.
            changes: Whether ``content`` was changed.
        """
        cases = [Example(case) if isinstance(case, str) else case for case in cases]
        if cases:
            kind = KINDS.get(what)
            self.findings.append(
                Finding(
                    what if kind else "",
                    WARNING,
                    len(cases),
                    first_examples(cases),
                    action or (kind.fix if kind else ""),
                    "" if kind else what,
                )
            )
            self.is_changed |= changes
        return len(cases)
