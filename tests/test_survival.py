"""A few kills of tools/survival.py; two hundred of them are a matter of half an hour."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_killed_runs_end_as_if_nobody_had_killed_them(tmp_path):
    command = [sys.executable, "tools/survival.py", "--kills", "5", "--processes", "1"]
    command += ["--workers", "0", "--output", str(tmp_path / "survival")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    row = next(line for line in process.stdout.splitlines() if line.startswith("| 1 | 0 |"))
    *_, kills, resumes, runs, equal = (int(cell) for cell in row.strip("| ").split(" | "))
    assert kills >= 5
    assert resumes >= 2
    assert runs == equal
