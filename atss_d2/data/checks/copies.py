"""Finds files with the same content, in one data set or in two."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .findings import Example, Report
from .probe import Probe


def equal_files(paths: Sequence[str], probes: Sequence[Probe]) -> list[list[int]]:
    """Groups files by content, regardless of their names.

    Only files whose sizes and last bytes agree are read.

    Args:
        paths: The files.
        probes: What was seen of them.

    Returns:
        Groups of indices of two or more files with the same content. Files that cannot be read are
        in none, and a path that occurs several times counts once.
    """
    first = {}
    for i, (path, x) in enumerate(zip(paths, probes)):
        if not x.problem:
            first.setdefault(path, i)
    groups = _parted([list(first.values())], lambda i: (probes[i].num_bytes, probes[i].digest))
    doubtful = [i for group in groups for i in group]
    with ThreadPoolExecutor(8) as pool:
        digests = dict(zip(doubtful, pool.map(lambda i: _digest(paths[i]), doubtful)))
    return [g for g in _parted(groups, digests.get) if digests[g[0]]]


def _parted(groups, key) -> list[list[int]]:
    parted = defaultdict(list)
    for number, group in enumerate(groups):
        for i in group:
            parted[number, key(i)].append(i)
    return [group for group in parted.values() if len(group) > 1]


def _digest(path: str) -> bytes:
    content = hashlib.sha1(usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                content.update(block)
    except OSError:
        return b""
    return content.digest()


def check_copies(report: Report, names: Sequence[str], paths: Sequence[str], probes) -> None:
    """Reports files that several images name, and files with the content of another."""
    uses = defaultdict(list)
    for i, path in enumerate(paths):
        uses[os.path.normpath(path)].append(i)
    again = [indices[1] for indices in uses.values() if len(indices) > 1]
    report.add("file_double", again, lambda i: Example(f"'{names[i]}'", names[i]))
    copies = [i for group in equal_files(paths, probes) for i in group[1:]]
    report.add("image_double", copies, lambda i: Example(f"'{names[i]}'", names[i]))


def check_shared(report: Report, train_paths, train_probes, names, paths, probes) -> None:
    """Reports the images of a validation set whose content is also in the training set."""
    # Equal paths need no reading, for example if a data set is validated on its training images.
    known = set(map(os.path.normpath, train_paths))
    shared = {i for i, path in enumerate(paths) if os.path.normpath(path) in known}
    others = [i for i in range(len(paths)) if i not in shared]
    both, num = [*train_paths, *(paths[i] for i in others)], len(train_paths)
    for group in equal_files(both, [*train_probes, *(probes[i] for i in others)]):
        if group[0] < num:
            shared |= {others[i - num] for i in group if i >= num}
    report.add("shared", sorted(shared), lambda i: Example(f"'{names[i]}'", names[i]))
