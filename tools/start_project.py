#!/usr/bin/env python
"""Writes a config for your own data set; --help explains it. atss_d2/commands/start_project.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also works in a checkout

from atss_d2_cli import run

if __name__ == "__main__":
    sys.exit(run("start-project"))
