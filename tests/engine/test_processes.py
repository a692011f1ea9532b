"""Processes part from each other."""

import threading
import time

from atss_d2.engine.processes import leave
from atss_d2.plain.watching import Watch


class SlowStore:
    """Answers late, as on a busy machine."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def check(self, keys: list[str]) -> bool:
        self.asked.set()
        time.sleep(0.3)
        return False


def test_no_thread_uses_the_store_when_a_process_has_left():
    """As the process would be aborted, if the interpreter ended during a call."""
    watch = Watch()
    watch.store = SlowStore()
    watch.start()
    assert watch.store.asked.wait(30)
    leave(watch)
    assert not watch.is_alive()
