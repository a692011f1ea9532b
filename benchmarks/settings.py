"""Settings of all measurements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        quick: Tiny sizes and few rounds, to show that everything runs; the numbers mean nothing.
        full_size: Training steps on images of 800 x 1344, not on smaller ones.
        compile: Also measures inference with ``torch.compile`` and AOTInductor, which need a C++
            compiler.
        seconds: Time for each race, regardless of the number of contestants.
        min_rounds: Minimum number of turns of every contestant, even if the time is over.
        threads: Threads of each operator on the CPU.
        device: "cpu" or "cuda".
        keep_memory: Whether the C library keeps freed memory, see ``--help``.
    """

    quick: bool = False
    full_size: bool = False
    compile: bool = False
    seconds: float = 5.0
    min_rounds: int = 5
    threads: int = 1
    device: str = "cpu"
    keep_memory: bool = False

    def choose(self, full: T, quick: T) -> T:
        """Returns the value for this kind of run."""
        return quick if self.quick else full

    @property
    def torch_device(self) -> torch.device:
        """``device`` as a ``torch.device``."""
        return torch.device(self.device)
