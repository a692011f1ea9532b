#!/usr/bin/env python
"""Finds what is wrong with a data set; --help explains it. atss_d2/commands/check_dataset.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also works in a checkout

from atss_d2_cli import run

if __name__ == "__main__":
    sys.exit(run("check-dataset"))
