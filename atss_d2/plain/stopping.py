"""Stops a process in order when it is sent SIGTERM, SIGINT (Ctrl-C) or SIGUSR1.

What the process does at that moment decides how: start-up and evaluations are abandoned at once, by
an exception; within the training loop the request is only noted, and the loop ends where its state
is whole. SIGINT a second time ends the process at once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

# SIGUSR1 is what SLURM sends with --signal=USR1; Windows has none.
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)
# Runs the handler in the main thread for a request that was no signal. Ignored unless handled.
_KICK = getattr(signal, "SIGURG", None)
# Time to leave a call that no exception can interrupt, such as waiting for another machine.
_PATIENCE = 10.0


class Stopped(BaseException):
    """A signal asked this process to stop.

    Not an ``Exception``, as nothing but the end of the program should catch it.

    Attributes:
        signum: The signal.
        is_agreed: Whether all processes stop at the same place.
    """

    def __init__(self, signum: int, *, is_agreed: bool = False) -> None:
        super().__init__(name_of(signum))
        self.signum = signum
        self.is_agreed = is_agreed

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal, as shells report it."""
        return 128 + self.signum


class Stopper:
    """Receives the signals of this process.

    Attributes:
        signum: The signal that asked to stop; None if there was none.
        is_installed: Whether the signals are received.
        is_deferred: Whether a request is only noted, not raised as an exception.
        is_stopping: Whether the main thread ends this process in order; it says so itself.
        is_told: Whether the user has been told.
        saved_iteration: Iteration of the last checkpoint that this process has saved.
        listeners: Called from another thread with every signal that this process gets itself.
        end_at_once: Called from another thread at the second SIGINT.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.is_installed = False
        self.is_deferred = False
        self.is_stopping = False
        self.is_told = False
        self.saved_iteration: int | None = None
        self.listeners: list[Callable[[int], None]] = []
        self.end_at_once: Callable[[], None] = lambda: exit_now(128 + signal.SIGINT)
        self._pid = os.getpid()
        self._is_raised = False
        self._is_postponed = False
        self._insists = False
        self._num_interrupts: dict[str, int] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Receives the signals within its context; does nothing outside of the main thread."""
        if self.is_installed or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._pid = os.getpid()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        # Python runs handlers when the main thread returns to its interpreter, which may take
        # hours (a rank waits for another); the numbers of signals arrive in this pipe at once.
        previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handled = (*SIGNALS, _KICK) if _KICK is not None else SIGNALS
        previous = {signum: signal.signal(signum, self._handle) for signum in handled}
        threading.Thread(target=self._read, args=(reader,), daemon=True, name="signals").start()
        self.is_installed = True
        try:
            yield
        finally:
            if self.signum is not None:  # Python would reset handlers of its own before it ends
                for signum in SIGNALS:
                    signal.signal(signum, signal.SIG_IGN)
            else:
                for signum, handler in previous.items():
                    signal.signal(signum, handler)
                signal.set_wakeup_fd(previous_writer)
                os.close(writer)
                self.is_installed = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only notes requests within its context."""
        before, self.is_deferred = self.is_deferred, True
        try:
            yield
        finally:
            self.is_deferred = before

    @contextlib.contextmanager
    def immediate(self) -> Iterator[None]:
        """Raises :class:`Stopped` for a request within its context, and for an earlier one."""
        before, self.is_deferred = self.is_deferred, False
        try:
            self.check()
            yield
        finally:
            self.is_deferred = before

    def check(self) -> None:
        """Raises :class:`Stopped` if a signal has asked to stop."""
        if self.signum is not None:
            self._is_raised = True
            raise Stopped(self.signum)

    def request(self, signum: int, source: str) -> None:
        """Takes a request that came another way, from any thread but the main one.

        Args:
            signum: The signal.
            source: Who asks. A terminal and a launcher may both pass on a single Ctrl-C.
        """
        if signum == signal.SIGINT:
            self._num_interrupts[source] = self._num_interrupts.get(source, 0) + 1
            if self._num_interrupts[source] == 2:
                self.end_at_once()
        if self.signum is None:
            self.signum = signum
        if not self.is_deferred and not self.is_stopping:
            if _KICK is not None:
                signal.pthread_kill(threading.main_thread().ident, _KICK)
            if not self._insists:
                self._insists = True
                threading.Thread(target=self._insist, daemon=True, name="insist").start()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked process, which its parent ends
            return
        if self.signum is None and signum != _KICK:
            self.signum = signum
        if not self.is_deferred and not self._is_raised:
            if _KICK is not None and _is_logging(frame):
                self._is_postponed = True
            else:
                self.check()

    def _read(self, reader: int) -> None:
        while content := os.read(reader, 64):
            for signum in content:
                if signum in SIGNALS:
                    self.request(signum, "signal")
                    for listener in list(self.listeners):
                        listener(signum)
        os.close(reader)

    def _insist(self) -> None:
        """Asks again after a log message, and ends this process if it is stuck elsewhere."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if self._is_postponed:
                self._is_postponed = False
                signal.pthread_kill(threading.main_thread().ident, _KICK)
        if not self.is_deferred and not self.is_stopping:
            exit_now(128 + (self.signum or 0))


def _is_logging(frame: FrameType | None) -> bool:
    """Returns whether the package ``logging`` is at work.

    It is called at every fork, where Python would swallow an exception, and a lock stay closed.
    """
    while frame is not None and frame.f_globals.get("__name__") != "logging":
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def blocked_signals() -> Iterator[None]:
    """Processes that are started within its context do not get the signals.

    The main process does: they go to its other threads.
    """
    if not STOP.is_installed or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals() -> None:
    """Lets this process get the signals, if it was started within :func:`blocked_signals`."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def name_of(signum: int) -> str:
    """Returns the name of a signal, such as ``"SIGTERM"``."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def exit_now(code: int) -> None:
    """Ends this process and those that load its data, without any clean-up, from any thread."""
    for process in multiprocessing.active_children():
        with contextlib.suppress(Exception):
            process.kill()
    os._exit(code)


STOP = Stopper()
