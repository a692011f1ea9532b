"""Spells the next command: with ``atss-d2``, or with a script of the checkout in use."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

# Scripts in a checkout that start the commands of atss_d2_cli.
_DOORS = {
    "start-project": "tools/start_project.py",
    "check-dataset": "tools/check_dataset.py",
    "train": "train_net.py",
    "predict": "tools/demo.py",
    "export": "tools/export_model.py",
}


def program(command: str) -> list[str]:
    """Returns the first words of a command line, as typed in the current folder."""
    root = checkout()
    if root is None:
        return ["atss-d2", command]
    python = shutil.which("python")
    is_ours = python is not None and Path(python).parent == Path(sys.executable).parent
    return ["python" if is_ours else relative(sys.executable), relative(root / _DOORS[command])]


def checkout() -> Path | None:
    """Returns the checkout that contains this code; None for ``atss-d2`` or outside a checkout."""
    if Path(sys.argv[0].partition(" ")[0]).name == "atss-d2":
        return None
    root = Path(__file__).resolve().parents[2]
    return root if all((root / door).is_file() for door in _DOORS.values()) else None


def relative(path: str | os.PathLike[str]) -> str:
    """Returns the shortest form of a path that works in the current folder."""
    absolute = os.path.abspath(path)
    shorter = os.path.relpath(absolute)
    return absolute if shorter.startswith(os.pardir) else shorter


def quote_value(text: str) -> str:
    """Quotes text as the value of an override ``key=value``, which follows Hydra's grammar."""
    escaped = re.sub(r"""(\\*)('|$)""", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text)
    return f"'{escaped}'"
