"""Peak memory that a call allocates, in bytes, beyond what was allocated before.

On the CPU it comes from the profiler, which records every allocation and release of torch's
allocator, including temporaries inside an operator. A mode that intercepts operators would see only
their results; the resident size of the process would include the allocator's leftovers.
"""

from __future__ import annotations

import gc

import torch
from torch.profiler import ProfilerActivity, profile

from .settings import Settings
from .timing import Contestant


def peak_bytes(contestant: Contestant, settings: Settings) -> float:
    """Returns the maximum number of bytes that a call has allocated at one time."""
    if contestant.prepare is not None:
        contestant.prepare()
    gc.collect()
    if settings.torch_device.type == "cuda":
        return _peak_on_cuda(contestant)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = contestant.run()
    del result
    held: dict[int, int] = {}  # address that this call has allocated -> bytes
    total = peak = 0
    for address, size in _allocations(profiler):
        if size > 0:
            held[address] = size
            total += size
            peak = max(peak, total)
        else:
            # Releasing what was there before does not count. The profiler records some of that,
            # too: memory at an address that it remembers from an earlier profile.
            total -= held.pop(address, 0)
    return float(peak)


def _allocations(profiler: profile) -> list[tuple[int, int]]:
    """Returns (address, bytes) of allocations in order; releases have negative bytes."""
    found = []
    waiting = profiler.profiler.kineto_results.experimental_event_tree()[::-1]
    while waiting:
        event = waiting.pop()
        waiting += event.children[::-1]  # the first child comes next
        if event.name == "[memory]":
            fields = event.extra_fields
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return [(address, size) for _, address, size in sorted(found, key=lambda x: x[0])]


def _peak_on_cuda(contestant: Contestant) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = contestant.run()
    torch.cuda.synchronize()
    del result
    return float(torch.cuda.max_memory_allocated() - before)


def peaks(contestants: list[Contestant], settings: Settings) -> dict[str, list[float]]:
    """Returns name -> [peak of a call after a warm-up call]; a list, as races return."""
    samples = {}
    for contestant in contestants:
        if contestant.prepare is not None:
            contestant.prepare()
        contestant.run()
        samples[contestant.name] = [peak_bytes(contestant, settings)]
    return samples
