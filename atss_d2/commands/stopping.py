"""Ends a long command at a good moment when its process is asked to stop."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from ..plain.stopping import SIGNALS

# Ctrl+C under torchrun arrives twice: from the terminal and from torchrun.
_ONE_REQUEST_SECONDS = 2.0


class Stopping:
    """Remembers a signal, so that work can end at a good moment; a second one ends at once.

    Attributes:
        received: The signal; None before it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._time = 0.0

    def __enter__(self) -> Stopping:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._time = signal.Signals(number), time.monotonic()
            # Not print: the signal may have interrupted one.
            os.write(2, b"\nstopping after this batch; a second signal stops at once\n")
        elif time.monotonic() > self._time + _ONE_REQUEST_SECONDS:
            os._exit(128 + number)

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal, as shells have it; 0 without one."""
        return 0 if self.received is None else 128 + self.received


def ignore_signals() -> None:
    """Lets a worker process work on until its parent has finished."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
