"""The peak of the memory that something allocates, in bytes, beyond what there was before.

On the CPU from the profiler, which writes down every allocation and release of torch's allocator,
those of temporaries inside of an operator included; a mode that looks at operators would see only
their results, the process's resident size also the allocator's leftovers.
"""

from __future__ import annotations

import ctypes
import gc

import torch
from torch.profiler import ProfilerActivity, profile

from .settings import Settings
from .timing import Contestant

# Of malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4


def peak_bytes(contestant: Contestant, settings: Settings) -> float:
    """Most bytes that a call has allocated at one time."""
    if contestant.prepare is not None:
        contestant.prepare()
    gc.collect()
    if settings.torch_device.type == "cuda":
        return _peak_on_cuda(contestant)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = contestant.run()
    del result
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return float(peak)


def _peak_on_cuda(contestant: Contestant) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = contestant.run()
    torch.cuda.synchronize()
    del result
    return float(torch.cuda.max_memory_allocated() - before)


def peaks(contestants: list[Contestant], settings: Settings) -> dict[str, list[float]]:
    """Name -> peak of a call, after one that warms up; a list of one value, as races have more."""
    samples = {}
    for contestant in contestants:
        if contestant.prepare is not None:
            contestant.prepare()
        contestant.run()
        samples[contestant.name] = [peak_bytes(contestant, settings)]
    return samples


def keep_freed_memory() -> None:
    """Makes the GNU C library keep what is freed, for the rest of the process.

    By default it returns large buffers at once, and the system clears every page of the next one,
    which costs as much as computing with it; how much, depends on the system. Whoever allocates
    more then pays more. Allocators that people preload for speed do not do so.

    Raises:
        OSError: This is another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        raise OSError("--keep-memory needs the GNU C library") from None
    for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
        if mallopt(parameter, value) != 1:
            raise OSError(f"--keep-memory: mallopt({parameter}, {value}) failed")
