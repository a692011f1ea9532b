"""Watches, from a thread of its own, over the other processes of a training.

A process that waits for another one, in a collective operation, hears nothing else. This thread
does: it learns that the process was told to stop, that another one has failed and why, that the
launcher has died, and ends this process if its main thread does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

from .stopping import STOP, exit_now

_PERIOD = 0.5  # seconds between two looks
_PATIENCE = 15.0  # seconds that the main thread has to notice by itself
_PATIENCE_OF_ORPHANS = 30.0  # the same, to save a checkpoint after the launcher has died


class Store(Protocol):
    """What is needed of ``torch.distributed.TCPStore``."""

    def check(self, keys: list[str]) -> bool:
        """Returns whether a key was set."""

    def get(self, key: str) -> bytes:
        """Returns a value."""

    def set(self, key: str, value: str) -> None:
        """Sets a value."""

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        """Sets a value if the key has none; returns its value."""


def read_failure(store: Store | None) -> dict[str, Any] | None:
    """Returns the first failure that a process has published; None if there is none."""
    with contextlib.suppress(Exception):
        if store is not None and store.check(["failure"]):
            return json.loads(store.get("failure"))
    return None


def publish_failure(store: Store | None, **failure: Any) -> bool:
    """Tells the other processes why this one ends; returns whether it is the first to say so."""
    text = json.dumps(failure)
    try:
        return store is None or bytes(store.compare_set("failure", "", text)).decode() == text
    except Exception:  # the store is gone, which the other processes will notice
        return True


class Watch(threading.Thread):
    """A thread that looks at the launcher and the store twice a second.

    Attributes:
        store: Where processes tell each other that they stop or fail; None before they have met.
        on_failure: Called with the failure of another process before this process ends.
    """

    def __init__(self, *, connection: Connection | None = None, parent: int | None = None) -> None:
        """
        Args:
            connection: The launcher sends signals through it; it closes when the launcher dies.
            parent: Process id of the launcher, for a launcher that is not ours.
        """
        super().__init__(daemon=True, name="watch")
        self.store: Store | None = None
        self.on_failure: Callable[[dict[str, Any]], None] = lambda failure: None
        self._connection = connection
        self._parent = parent
        self._closed = threading.Event()
        # Monotonic times at which the main thread must have ended the process.
        self._deadlines: dict[str, float] = {}
        STOP.listeners.append(self._publish_stop)

    def close(self) -> None:
        """Stops watching, before the processes part."""
        self._closed.set()
        if self._publish_stop in STOP.listeners:
            STOP.listeners.remove(self._publish_stop)

    def publish_end(self, signum: int) -> None:
        """Tells the other processes that this one stops without waiting for them."""
        self._publish_stop(signum)
        with contextlib.suppress(Exception):
            if self.store is not None:
                self.store.set("gone", str(int(signum)))

    def run(self) -> None:
        """Runs the thread."""
        while not self._closed.is_set():
            self._listen_to_launcher()
            if self._parent is not None and os.getppid() != self._parent:
                self._parent = None
                self._lose_launcher()
            if self.store is not None and not self._closed.is_set():
                self._look()
            self._end_if_late()

    def _listen_to_launcher(self) -> None:
        if self._connection is None:
            self._closed.wait(_PERIOD)
            return
        try:
            if self._connection.poll(_PERIOD):
                signum = self._connection.recv()
                STOP.request(signum, "launcher")
                self._publish_stop(signum)
        except (EOFError, OSError):
            self._connection = None
            self._lose_launcher()

    def _lose_launcher(self) -> None:
        STOP.request(signal.SIGTERM, "launcher")
        self._publish_stop(signal.SIGTERM)
        self._deadlines["orphan"] = time.monotonic() + _PATIENCE_OF_ORPHANS

    def _publish_stop(self, signum: int) -> None:
        with contextlib.suppress(Exception):
            if self.store is not None:
                self.store.compare_set("stop", "", str(int(signum)))

    def _look(self) -> None:
        try:
            has_failed, is_stopping, is_gone = (
                self.store.check([key]) for key in ("failure", "stop", "gone")
            )
            if has_failed:
                self._follow(json.loads(self.store.get("failure")))
            if is_stopping and STOP.signum is None:
                STOP.request(int(self.store.get("stop")), "others")
            elif STOP.signum is not None and not is_stopping:  # it came before the store
                self._publish_stop(STOP.signum)
            if is_gone:
                self._deadlines.setdefault("gone", time.monotonic() + _PATIENCE)
        except Exception:  # the process or machine of the store is gone
            self._deadlines.setdefault("store", time.monotonic() + _PATIENCE)

    def _follow(self, failure: dict[str, Any]) -> None:
        if self._closed.is_set():
            return
        self.on_failure(failure)
        sys.stderr.flush()
        exit_now(1)

    def _end_if_late(self) -> None:
        late = [name for name, time_ in self._deadlines.items() if time.monotonic() > time_]
        if not late or self._closed.is_set() or (STOP.is_stopping and "orphan" not in late):
            return
        if STOP.signum is None:
            self.on_failure({"text": "the process that all processes meet at is gone"})
            exit_now(1)
        exit_now(128 + STOP.signum)
