"""Fills tables into a markdown document between markers, so that its prose stays unchanged.

A block consists of ``<!-- begin NAME -->``, generated text and ``<!-- end NAME -->``. NAME is a
case, "CASE summary", ``machine`` or ``targets``.
"""

from __future__ import annotations

import os
from pathlib import Path

from ablations.document import fill_blocks

from .machine import machine_line
from .report import case_tables, summary_table, targets_table
from .results import CaseResult


def write_document(document: Path, results: dict[str, CaseResult], picture: Path | None) -> None:
    """Fills the blocks of the measured cases, also in NAME_tables.md beside NAME.md.

    Args:
        document: A markdown file with markers.
        results: Results by name of the case.
        picture: Picture of the assignment, shown with its table; None if there is none.

    Raises:
        FileNotFoundError: There is no document.
        ValueError: The document has none of the blocks.
    """
    if not document.is_file():
        raise FileNotFoundError(f"there is no document {document} to fill in")
    blocks = {name: case_tables(result, markdown=True) for name, result in results.items()}
    for name, result in results.items():
        blocks[f"{name} summary"] = summary_table(result)
    if picture is not None and "assignment" in results:
        place = Path(os.path.relpath(picture, document.parent)).as_posix()
        blocks["assignment summary"] += f"\n\n![Assignment time]({place})"
    blocks["targets"] = targets_table(results, markdown=True)
    blocks["machine"] = _machines(results)
    fill_blocks(document, blocks)
    tables = document.with_name(f"{document.stem}_tables.md")
    if tables.is_file():
        fill_blocks(tables, blocks)


def _machines(results: dict[str, CaseResult]) -> str:
    """Lists which cases were measured on which machine; usually one machine on one day."""
    cases: dict[str, list[str]] = {}
    for name, result in results.items():
        cases.setdefault(machine_line(result.machine), []).append(name)
    if len(cases) == 1:
        return f"{next(iter(cases))}."
    return "\n".join(f"- {', '.join(names)}: {line}." for line, names in cases.items())
