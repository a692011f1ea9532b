"""Random states: those of a run that may be resumed, and of code that must not change them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.seeding import seed_generators

_STEP = 3  # what numbers are hashed for; see also data/samples.py


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


def random_states() -> dict[str, Any]:
    """Returns the random states of Python, numpy and torch, as what a safe checkpoint may hold."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restores what :func:`random_states` returned."""
    version, values, gauss = states["python"]
    random.setstate((version, tuple(values), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class RunSeed:
    """The seed of a run: the config's or, if that is negative, one that checkpoints keep.

    Give it to the checkpointer as ``run_seed``: a resumed run then continues with the same seed.

    Attributes:
        value: The seed, the same in all processes.
        continues: Whether a resumed run has the seed of the run before.
    """

    def __init__(self, seed: int | None) -> None:
        """
        Args:
            seed: Seed of the config; if negative or None, one is drawn. All processes must call
                this, as they agree on it.
        """
        self.continues = seed is not None and seed >= 0
        self._is_drawn = not self.continues
        self.value = comm.shared_random_seed() if self._is_drawn else seed

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restores a seed that was drawn; that of the config is kept."""
        if self._is_drawn:
            self.value, self.continues = state_dict["value"], True


class StepSeeds(HookBase):
    """Seeds all generators before each step by (seed, iteration, process).

    What a model draws, such as dropout, is then the same in a resumed run. Must be the first hook.
    """

    def __init__(self, seed: RunSeed) -> None:
        self._seed = seed

    def before_step(self) -> None:
        numbers = (self._seed.value, _STEP, self.trainer.iter, comm.get_rank())
        seed_generators(*numbers, devices=True)
