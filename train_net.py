#!/usr/bin/env python
"""Trains or evaluates a model; the command is atss_d2/commands/train.py."""

import sys

from atss_d2_cli import run

if __name__ == "__main__":
    sys.exit(run("train"))
