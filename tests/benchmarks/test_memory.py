"""Peaks of known allocations, to the byte."""

import ctypes
import subprocess
import sys

import pytest
import torch

from benchmarks.memory import peak_bytes, peaks
from benchmarks.settings import Settings
from benchmarks.timing import Contestant

MB = 2**20


def megabytes(num):
    return torch.empty(num * MB, dtype=torch.uint8)


def peak_of(run, prepare=None):
    return peak_bytes(Contestant("a", run, prepare), Settings()) / MB


def test_what_is_freed_counts_no_more():
    def run():
        first = megabytes(3)
        del first
        second = megabytes(2)
        third = megabytes(2)
        return second, third

    assert peak_of(run) == 4


def test_the_highest_moment_counts():
    def run():
        first, second = megabytes(3), megabytes(4)
        del first, second
        return megabytes(1)

    assert peak_of(run) == 7


def test_only_what_is_added_counts():
    kept = [megabytes(100)]

    def run():
        kept.append(megabytes(2))
        del kept[0]  # was there before: no credit for it
        return megabytes(1)

    assert peak_of(run) == 3


def test_an_earlier_measurement_changes_nothing():
    """The profiler remembers an address, which something from before then has."""
    assert peak_of(lambda: megabytes(100)) == 100
    kept = [megabytes(100)]

    def run():
        kept.append(megabytes(2))
        del kept[0]
        return megabytes(1)

    assert peak_of(run) == 3


def test_temporaries_within_an_operator_count():
    """``index_select`` with a mask makes indices, which no one sees."""
    values, mask = torch.ones(MB), torch.ones(MB, dtype=torch.bool)
    found = peak_of(lambda: values[mask])
    assert found >= 4 + 8  # the result and int64 indices


def test_preparation_does_not_count():
    kept = []
    assert peak_of(lambda: megabytes(1), lambda: kept.append(megabytes(50))) == 1


def test_the_first_of_two_calls_warms_up():
    cache = []

    def run():
        if not cache:
            cache.append(megabytes(30))
        return megabytes(2)

    assert peaks([Contestant("a", run)], Settings()) == {"a": [2 * MB]}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not the GNU C library")
def test_freed_memory_is_kept_on_request():
    """A buffer of 64 MB gets the same place again without new pages."""
    code = """
import resource, sys
from benchmarks.memory import keep_freed_memory
import torch
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = []
for _ in range(30):
    torch.ones(2**24)
    before.append(faults())
print(before[-1] - before[14])
"""
    found = {}
    for how in ("keep", "default"):
        result = subprocess.run(
            [sys.executable, "-c", code, how], capture_output=True, text=True, check=True
        )
        found[how] = int(result.stdout)
    assert found["keep"] < found["default"] / 5  # pages are of 4 kB or of 2 MB
