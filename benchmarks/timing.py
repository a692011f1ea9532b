"""Races: contestants take turns within one process, A B C, C B A, A B C, ..."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .settings import Settings

# A turn repeats a fast call for this long, so that clock ticks and interrupts do not matter.
_TURN_SECONDS = 0.02
# Before the clock starts. TorchScript has compiled its kernels after the second call.
_WARM_UP_CALLS = 3
_WARM_UP_SECONDS = 1.0


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Args:
        name: Its name in tables and pictures.
        run: The timed call. Its result is freed after the clock has stopped.
        prepare: Called before each call of ``run``, not timed.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


def race(
    contestants: Sequence[Contestant],
    settings: Settings,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times contestants in turns, until the time of ``settings`` is over.

    Every second round is in reverse order, so that no contestant always follows the same one. The
    garbage collector runs only between rounds. Warm-up calls come first: they fill caches, compile,
    and raise the size up to which the C library keeps freed memory.

    Args:
        contestants: In the order of the tables.
        settings: See :class:`Settings`.
        clock: Returns seconds.

    Returns:
        Name -> seconds per call, one value for each turn.
    """
    names = [contestant.name for contestant in contestants]
    if len(set(names)) != len(names):
        raise ValueError(f"contestants need different names, got {names}")
    is_cuda = settings.torch_device.type == "cuda"
    lengths = {}
    for contestant in contestants:
        seconds, warm_up_calls = [], settings.choose(_WARM_UP_CALLS, 1)
        while len(seconds) < warm_up_calls and sum(seconds) < _WARM_UP_SECONDS:
            seconds.append(_call(contestant, is_cuda, clock))
        calls = 1 if settings.quick else int(_TURN_SECONDS / max(min(seconds), 1e-9))
        lengths[contestant.name] = max(calls, 1)
    samples: dict[str, list[float]] = {name: [] for name in names}
    end = clock() + settings.seconds
    order = list(contestants)
    was_enabled = gc.isenabled()
    try:
        while len(samples[names[0]]) < settings.min_rounds or clock() < end:
            gc.collect()
            gc.disable()
            for contestant in order:
                calls = lengths[contestant.name]
                total = sum(_call(contestant, is_cuda, clock) for _ in range(calls))
                samples[contestant.name].append(total / calls)
            order.reverse()
    finally:
        if was_enabled:
            gc.enable()
    return samples


def _call(contestant: Contestant, is_cuda: bool, clock: Callable[[], float]) -> float:
    """Returns the seconds of one call."""
    if contestant.prepare is not None:
        contestant.prepare()
    if is_cuda:
        torch.cuda.synchronize()
    start = clock()
    result = contestant.run()
    if is_cuda:
        torch.cuda.synchronize()
    seconds = clock() - start
    del result
    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Returns the first and third quartile; a single value is both."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
