"""Calls functions in child processes, whose memory is gone when they have returned.

What Python holds while it reads millions of annotations is many times what is left of them, and a
process that has held it does not give it back.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from detectron2.utils import comm

from .errors import DataError

# Waiting processes hear from those that work at least this often, in seconds: process groups take
# silence for a failure.
_PATIENCE = 5.0


def can_fork() -> bool:
    """Returns whether :func:`call_in_children` works here."""
    is_linux = sys.platform.startswith("linux")
    return is_linux and not multiprocessing.current_process().daemon


def call_in_children(ranks: Collection[int], function: Callable[[], Any], what: str) -> list[Any]:
    """Calls a function in a child of some processes; all processes must call this together.

    Args:
        ranks: The processes whose children call the function.
        function: Returns something that can be pickled. Its side effects are lost.
        what: What the child does, for messages: "loads the data set".

    Returns:
        The result of each process of the job; None of those that are not in ``ranks``.

    Raises:
        Exception: What the function raised in one of them, on all processes.
    """
    with contextlib.ExitStack() as stack:
        mine = None
        if comm.get_rank() in ranks:
            mine = stack.enter_context(contextlib.closing(_Child(function, what)))
        while True:
            outcomes = comm.all_gather(mine and mine.outcome(_PATIENCE))
            errors = [x.error for x in outcomes if x is not None and x.error is not None]
            if errors:
                raise errors[0]
            if all(outcomes[rank] is not None for rank in ranks):
                return [x and x.result for x in outcomes]


class _Outcome(NamedTuple):
    """What came of a call."""

    error: Exception | None = None
    result: Any = None


class _Child:
    """A process that calls a function."""

    def __init__(self, function: Callable[[], Any], what: str) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_call, args=(function, theirs))
        self._process.start()
        theirs.close()
        self._what = what
        self._outcome: _Outcome | None = None

    def outcome(self, seconds: float) -> _Outcome | None:
        """Waits for the outcome; returns None if it takes longer."""
        if self._outcome is None and self._pipe.poll(seconds):
            try:
                self._outcome = self._pipe.recv()
            except EOFError:
                self._process.join()
                self._outcome = _Outcome(DataError(self._ending()))
        return self._outcome

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _ending(self) -> str:
        if self._process.exitcode == -signal.SIGKILL:
            return (
                f"the process that {self._what} was killed, as happens when the machine has no "
                "memory left: end other programs, or split the annotation file"
            )
        return f"the process that {self._what} ended with exit code {self._process.exitcode}"


def _call(function: Callable[[], Any], pipe: Any) -> None:
    """Runs in the child."""
    for number in (signal.SIGINT, signal.SIGUSR1):  # the parent decides what they mean
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # half of the time of reading JSON, for millions of objects without a cycle
    torch.set_num_threads(1)  # the threads of the parent do not exist here
    try:
        outcome = _Outcome(result=function())
    except Exception as error:
        outcome = _Outcome(_portable(error))
    pipe.send(outcome)


def _portable(error: Exception) -> Exception:
    """Returns an error that other processes can raise, with the traceback of this one."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.__notes__ = ["".join(traceback.format_exception(error))]  # printed since Python 3.11
    return copy
