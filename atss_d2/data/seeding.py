"""Seeds Python's, numpy's and torch's generators from a hash of a few numbers."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["seed_generators", "seeded"]


def seed_generators(*numbers: int, devices: bool = False) -> None:
    """Seeds the global generators of Python, numpy and torch; equal numbers give equal draws.

    Args:
        *numbers: Non-negative integers, such as a seed and an iteration; their order counts.
        devices: Whether to seed torch's generators of GPUs, too.
    """
    # Zeros at the end change nothing, so the length is hashed, too.
    words = np.random.SeedSequence((len(numbers), *numbers)).generate_state(8)  # uint32
    np.random.seed(words[:4])  # noqa: NPY002
    random.seed(int.from_bytes(words[4:6].tobytes(), "little"))
    # Detectron2's transforms and torch's samplers draw signed 64-bit numbers from this one.
    seed = int.from_bytes(words[6:].tobytes(), "little") >> 1
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seeds the generators as :func:`seed_generators` within its context, then restores them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    state = torch.default_generator.get_state()
    try:
        seed_generators(*numbers)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.default_generator.set_state(state)
