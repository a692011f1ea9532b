"""Fills tables and pictures of the study into a document between markers; its prose stays.

A block consists of ``<!-- begin DATA NAME -->``, generated text and ``<!-- end DATA NAME -->``.
NAME is a table (``table1``), ``positives`` or ``cost``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .plots import plot_positives, plot_sweep, plot_table
from .report import Measurement, collect, positives_table, table_of
from .rows import TABLES
from .runs import read_results

POSITIVES = "positives.json"
# Tables whose rows vary one number.
_SWEEPS = {"table4": "k", "table5": "scale (side / stride)"}
_CLAIM = 0.2 * 9 * 5  # Sec. 3.2: about 0.2 k L positives for every object
_BOXES = {"generated": "one box in 800 x 1344 px"}


def write_document(
    document: Path, output: Path, data: str, *, overrides: Sequence[str] = ()
) -> list[Path]:
    """Fills the document's blocks of a data set, and draws their pictures.

    Pictures go to ``images/`` beside the document, one for each table with at least two measured
    rows.

    Args:
        document: A markdown file with markers.
        output: Folder of the study.
        data: Data set of the study.
        overrides: The ``key=value`` that the runs were started with.

    Returns:
        The pictures.

    Raises:
        FileNotFoundError: There is no document.
        ValueError: The document has no block of the data set.
    """
    if not document.is_file():
        raise FileNotFoundError(f"there is no document {document} to fill in")
    measurements = collect(read_results(output, data), data, overrides=overrides)
    positives = _read_positives(output, data)
    images = document.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    blocks: dict[str, str] = {"cost": cost_of(measurements.values())}
    pictures = {}
    for table, title in TABLES.items():
        rows = [m for m in measurements.values() if m.row.table == table]
        blocks[table] = table_of(rows, data)
        if sum(bool(m.results) for m in rows) < 2:  # nothing to compare
            continue
        pictures[table] = images / f"ablation_{data}_{table}.png"
        if table in _SWEEPS:
            plot_sweep(
                rows,
                data,
                title,
                pictures[table],
                xlabel=_SWEEPS[table],
                positives=positives["sweeps"][table] if positives else None,
            )
        else:
            plot_table(rows, data, title, pictures[table])
    if positives:
        blocks["positives"] = _positives_block(positives["scenes"], data)
        pictures["positives"] = images / f"ablation_{data}_positives.png"
        titles = _BOXES | {data: f"boxes of the training images of {data}"}
        plot_positives(positives["scenes"], pictures["positives"], claim=_CLAIM, titles=titles)
    for name, path in pictures.items():
        blocks[name] += f"\n\n![{TABLES.get(name, 'Positives by size')}](images/{path.name})"
    fill_blocks(document, {f"{data} {name}": text for name, text in blocks.items()})
    return list(pictures.values())


def cost_of(measurements: Iterable[Measurement]) -> str:
    """Returns a sentence on the number of runs and their time."""
    results = {
        (result.config, result.seed): result for m in measurements for result in m.results
    }.values()
    seconds = [result.seconds for result in results if result.seconds is not None]
    if not results:
        return "No run has been made."
    text = f"{len(results)} runs of {max(result.iterations for result in results)} iterations"
    if seconds:
        text += (
            f"; {sum(seconds) / 3600:.1f} hours in all, {min(seconds):.0f} to {max(seconds):.0f} "
            "seconds a run (start and evaluation included, as many runs at a time as cores)"
        )
    return text + "."


def _positives_block(scenes: dict[str, dict[str, Any]], data: str) -> str:
    titles = _BOXES | {data: f"boxes of the training images of {data}"}
    return "\n\n".join(
        f"**{titles.get(name, name)}**: mean number of positives (share of objects without any)\n\n"
        + positives_table(rules)
        for name, rules in scenes.items()
    )


def _read_positives(output: Path, data: str) -> dict[str, Any] | None:
    path = Path(output, data, POSITIVES)
    return json.loads(path.read_text()) if path.exists() else None


def fill_blocks(document: Path, blocks: dict[str, str]) -> None:
    """Replaces the text between the markers of the blocks that the document has.

    Raises:
        ValueError: It has none of them.
    """
    text = document.read_text(encoding="utf-8")
    found = 0
    for name, content in blocks.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        filled = f"{begin}\n\n{content}\n\n{end}"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        text, count = re.subn(pattern, lambda _, filled=filled: filled, text, flags=re.DOTALL)
        found += count
    if not found:
        raise ValueError(
            f"{document} has none of the blocks {', '.join(blocks)}: add the lines "
            f"'<!-- begin {next(iter(blocks))} -->' and '<!-- end {next(iter(blocks))} -->'"
        )
    document.write_text(text, encoding="utf-8")
