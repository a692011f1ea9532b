#!/usr/bin/env python
"""Converts weights of other implementations; the command is atss_d2/commands/convert_weights.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also works in a checkout

from atss_d2_cli import run

if __name__ == "__main__":
    sys.exit(run("convert-weights"))
