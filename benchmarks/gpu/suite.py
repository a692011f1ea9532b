"""The suite's own tests that use a GPU if there is one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from .registry import Environment, check

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("tests/modeling",)


@check("the suite's tests that are marked `gpu`", seconds=40)
def suite(env: Environment) -> str:
    """Without a GPU they are skipped, or run on the CPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    found = subprocess.run(
        [*command, *_FOLDERS], cwd=ROOT, capture_output=True, text=True, env={**os.environ}
    )
    lines = [x for x in found.stdout.splitlines() if x.strip()]
    summary = lines[-1].strip("= ") if lines else found.stderr[-300:]
    assert found.returncode == 0, summary
    return re.sub(r" in [\d.]+s.*| \d+ deselected,?|,? \d+ deselected", "", summary)
