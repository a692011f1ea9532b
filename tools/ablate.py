#!/usr/bin/env python
"""Reruns the experiments of the paper; --help explains it. The same as ``python -m ablations``."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also from another folder

if __name__ == "__main__":
    runpy.run_module("ablations", run_name="__main__")
