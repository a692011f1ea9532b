#!/usr/bin/env python
"""Detects objects in images or videos; --help explains it. The command is commands/predict.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also works in a checkout

from atss_d2_cli import run

if __name__ == "__main__":
    sys.exit(run("predict"))
