"""Says how far a long command is."""

from __future__ import annotations

import sys
import time

from ..plain.shards import ShardResults
from .processes import shard_here

_LOG_SECONDS = 30.0
_TERMINAL_SECONDS = 0.5


class Progress:
    """Prints how far a shard is: on a terminal often on one line, else a line now and then."""

    def __init__(self, name: str, results: ShardResults) -> None:
        self._name = name
        self._results = results
        self._before = results.num_done + results.num_bad
        self._is_terminal = sys.stderr.isatty() and shard_here(None).count == 1
        self._start = self._shown = time.monotonic()

    def show(self, *, is_last: bool = False) -> None:
        """Prints the state, unless it was printed a moment ago."""
        now = time.monotonic()
        wait = _TERMINAL_SECONDS if self._is_terminal else _LOG_SECONDS
        if now < self._shown + wait and not is_last:
            return
        self._shown = now
        results = self._results
        done = results.num_done + results.num_bad
        rate = (done - self._before) / max(now - self._start, 1e-9)
        left = _clock((results.num_images - done) / rate) if rate else "unknown"
        line = (
            f"{self._name}: {done} of {results.num_images} images, {rate:.1f} images/s, "
            f"{left} left, {results.num_bad} bad"
        )
        if not self._is_terminal:
            print(line, file=sys.stderr, flush=True)
        else:
            end = "\n" if is_last else ""
            print(f"\r{line}\x1b[K", end=end, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
