"""Peaks of known allocations, to the byte."""

import torch

from benchmarks.memory import peak_bytes
from benchmarks.settings import Settings
from benchmarks.timing import Contestant

MB = 2**20


def megabytes(num):
    return torch.empty(num * MB, dtype=torch.uint8)


def peak_of(run):
    return peak_bytes(Contestant("a", run, None), Settings()) / MB


def test_an_earlier_measurement_changes_nothing():
    """The profiler remembers an address, which something from before then has."""
    assert peak_of(lambda: megabytes(100)) == 100
    kept = [megabytes(100)]

    def run():
        kept.append(megabytes(2))
        del kept[0]  # was there before: no credit for it
        return megabytes(1)

    assert peak_of(run) == 3
