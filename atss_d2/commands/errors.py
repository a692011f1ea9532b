"""Errors of commands as one sentence."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import NoReturn

# What a wrong argument, file or config raises. Anything else is a fault of ours: a traceback.
EXPECTED = (OSError, KeyError, ValueError, AssertionError, ImportError)

# What DataLoader makes of an error in a worker: the traceback as text, in an error of its type.
_WORKER = re.compile(r"^Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback")


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are one line without the usage, and know near flags."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with the message and exit code 2."""
        first, _, rest = message.partition(": ")
        hint = ""
        if first == "unrecognized arguments" and not rest.startswith("-"):
            if "--opts" in self._option_string_actions:
                hint = "; overrides come last on the line, behind --opts"
        elif first == "unrecognized arguments":
            flag = re.split(r"[\s=]", rest)[0]
            near = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; {self.prog} --help lists the flags"
        elif first == "the following arguments are required":
            hint = f"; {self.prog} --help explains them"
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}{hint}\n")


def one_sentence(error: BaseException) -> str:
    """The message of an error on one line, without the traceback of a DataLoader's worker."""
    # KeyError puts its message in quotes.
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if _WORKER.match(message):
        lines = message.rstrip().splitlines()
        # The message begins behind the last line of the traceback, which is indented.
        start = max(i for i, line in enumerate(lines) if line.startswith("  ")) + 1
        message = " ".join(lines[start:]).partition(": ")[2] or lines[-1]
    return " ".join(message.split()) or repr(error)


def fail(parser: argparse.ArgumentParser, error: BaseException | str) -> NoReturn:
    """Ends the command with ``PROGRAM: sentence`` on standard error and exit code 1."""
    sentence = error if isinstance(error, str) else one_sentence(error)
    sys.exit(f"{parser.prog}: {sentence}")
