#!/usr/bin/env python
"""Runs a training step again that stopped a run; --help explains it. See commands/replay.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also works in a checkout

from atss_d2_cli import run

if __name__ == "__main__":
    sys.exit(run("replay"))
