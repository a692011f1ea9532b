"""The list of checks, and what a check gets and gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .forced import gpu_branches


@dataclass(frozen=True)
class Environment:
    """Where and how a check runs.

    Args:
        device: ``"cuda"``, or ``"cpu"`` to see that the checks themselves run: then the branches of
            a GPU are forced on the CPU.
        tiny: Small sizes and few rounds; the numbers mean nothing.
        folder: For files.
    """

    device: str
    tiny: bool
    folder: Path

    @property
    def is_cuda(self) -> bool:
        """Whether this is a GPU."""
        return self.device == "cuda"

    def branches(self) -> contextlib.AbstractContextManager:
        """Returns the context in which tensors of ``device`` take the branches of a GPU."""
        return contextlib.nullcontext() if self.is_cuda else gpu_branches()

    def choose(self, full, tiny):
        """Returns the value for this size of run."""
        return tiny if self.tiny else full


class Skipped(Exception):
    """The check cannot run here; the message says why."""


@dataclass(frozen=True)
class Check:
    """A check.

    Args:
        name: Its name.
        what: What it shows, in a few words.
        seconds: Expected on one GPU, start included.
        num_gpus: How many it needs.
        run: Returns a figure for the table; raises AssertionError if the check fails.
    """

    name: str
    what: str
    seconds: int
    num_gpus: int
    run: Callable[[Environment], str]


@dataclass(frozen=True)
class Outcome:
    """What became of a check.

    Args:
        name: Its name.
        result: "passed", "FAILED", "skipped" or "not run".
        figure: A number, or the reason.
        seconds: Wall-clock time, start of the process included.
    """

    name: str
    result: str
    figure: str
    seconds: float

    @property
    def is_bad(self) -> bool:
        """Whether the run as a whole has failed; a skipped check says why it could not run."""
        return self.result not in ("passed", "skipped")


CHECKS: dict[str, Check] = {}


def check(what: str, *, seconds: int, num_gpus: int = 1) -> Callable:
    """Registers a function as a check, under its own name."""

    def register(run: Callable[[Environment], str]) -> Callable[[Environment], str]:
        name = run.__name__
        CHECKS[name] = Check(name, what, seconds, num_gpus, run)
        return run

    return register


def full_float32() -> None:
    """Turns TensorFloat-32 off, which has the precision of float16."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference, relative to the largest expected value."""
    difference = (found.double().cpu() - expected.double().cpu()).abs().max()
    return (difference / expected.double().abs().max().cpu().clamp(min=1e-12)).item()


def require(value: float, limit: float, what: str) -> None:
    """Requires that a value is finite and at most the limit.

    Raises:
        AssertionError: It is not.
    """
    if not value <= limit:
        raise AssertionError(f"{what}: {value:.3g}, allowed is {limit:.3g}")
