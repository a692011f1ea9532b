"""A toy model whose trainings take long enough to be sent signals, and say what they do."""

import os
import sys
import time
from pathlib import Path

from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from tests import toy


class SlowATSS(toy.RecordingATSS):
    """Sleeps in every step, and says what it does.

    ``$STARTS_TRAIN`` are the seconds in a step, ``$STARTS_TEST`` those in an image of evaluations
    behind ``$STARTS_TEST_AFTER`` iterations (1), but for the short one before training.
    """

    num_iterations = 0  # of the class, as evaluations may use a copy of the model

    def forward(self, batched_inputs):
        if self.training:
            SlowATSS.num_iterations = get_event_storage().iter + 1
            say("train")
            time.sleep(float(os.environ.get("STARTS_TRAIN", 0)))
        elif self.num_iterations >= int(os.environ.get("STARTS_TEST_AFTER", 1)):
            say("test")
            time.sleep(float(os.environ.get("STARTS_TEST", 0)))
        return super().forward(batched_inputs)


def say(what: str) -> None:
    """Writes the process id, and what it does, to ``$STARTS.<rank>``."""
    path = Path(f"{os.environ['STARTS']}.{comm.get_rank()}")
    if not path.exists() or path.read_text() != f"{os.getpid()} {what}":
        temporary = Path(f"{path}.temporary")
        temporary.write_text(f"{os.getpid()} {what}")
        temporary.replace(path)


def _linger(event: str, arguments: tuple) -> None:
    """Takes two seconds to put the file ``$STARTS_SAVE`` into its place."""
    if event == "os.rename" and os.path.basename(arguments[1]) == os.environ["STARTS_SAVE"]:
        say("save")
        time.sleep(2)


if "STARTS_SAVE" in os.environ:
    sys.addaudithook(_linger)
