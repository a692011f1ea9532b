#!/usr/bin/env python
"""Detects with an exported file; --help explains it. The command: commands/predict_exported.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also works in a checkout

from atss_d2_cli import run

if __name__ == "__main__":
    sys.exit(run("predict-exported"))
