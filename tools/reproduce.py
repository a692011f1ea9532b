#!/usr/bin/env python
"""Trains the zoo and the paper's tables, and checks set-ups; --help explains it."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run from another folder

if __name__ == "__main__":
    runpy.run_module("reproduction", run_name="__main__")
