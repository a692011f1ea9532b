"""Preserves random states."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def preserved_rng() -> Iterator[None]:
    """Restores the random states of Python, numpy and torch (of the current GPU) afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    # By default torch saves the states of all GPUs of the machine, with a warning, in each process.
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
