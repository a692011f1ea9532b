"""What all cases are measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        quick: Tiny sizes and few rounds: shows that everything runs, measures nothing.
        full_size: Training steps on images of 800 x 1344, not on smaller ones.
        compile: Also measure inference with ``torch.compile`` and AOTInductor, which need a C++
            compiler.
        seconds: Time for each race, however many contestants it has.
        min_rounds: Turns of every contestant, if the time is over before.
        threads: Of each operator on the CPU.
        device: "cpu" or "cuda".
        keep_memory: Whether the C library keeps freed memory, see :func:`keep_freed_memory`.
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
        """The value for the kind of run that this is."""
        return quick if self.quick else full

    @property
    def torch_device(self) -> torch.device:
        """``device`` for tensors."""
        return torch.device(self.device)
