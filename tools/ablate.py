#!/usr/bin/env python
"""Reruns the experiments of the paper, like ``python -m ablations``; --help explains it."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run from another folder

if __name__ == "__main__":
    runpy.run_module("ablations", run_name="__main__")
