"""Prints errors and warnings of commands, each as one sentence on standard error."""

from __future__ import annotations

import argparse
import re
import sys
from typing import NoReturn

from ..plain.suggestions import did_you_mean

# Raised for a wrong argument, file or config. Anything else is a bug of ours and gets a traceback.
EXPECTED = (OSError, KeyError, ValueError, AssertionError, ImportError)

# DataLoader re-raises a worker's error as the same type, with the traceback as its message.
_WORKER = re.compile(r"^Caught \w+ in DataLoader worker process \d+\.\nOriginal Traceback")


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that prints errors on one line, without usage, and suggests flags."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with the message and exit code 2."""
        first, _, rest = message.partition(": ")
        hint = ""
        if first == "unrecognized arguments" and not rest.startswith("-"):
            if "--opts" in self._option_string_actions:
                hint = "; overrides come last on the line, behind --opts"
        elif first == "unrecognized arguments":
            flag = re.split(r"[\s=]", rest)[0]
            known = [x for x in self._option_string_actions if x not in ("-h", "--help")]
            otherwise = f"{self.prog} --help lists the flags"
            hint = f"; {did_you_mean(flag, known, num=1, otherwise=otherwise)}"
        elif first == "the following arguments are required":
            hint = f"; {self.prog} --help explains them"
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}{hint}\n")


def one_sentence(error: BaseException) -> str:
    """Returns an error's message on one line, without the traceback of a DataLoader worker."""
    # KeyError puts its message in quotes.
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if _WORKER.match(message):
        lines = message.rstrip().splitlines()
        # The message starts after the last line of the traceback, which is indented.
        start = max(i for i, line in enumerate(lines) if line.startswith("  ")) + 1
        message = " ".join(lines[start:]).partition(": ")[2] or lines[-1]
    return " ".join(message.split()) or repr(error)


def fail(parser: argparse.ArgumentParser, error: BaseException | str) -> NoReturn:
    """Ends a command that failed, with ``PROGRAM: sentence`` and exit code 1."""
    sentence = error if isinstance(error, str) else one_sentence(error)
    sys.exit(f"{parser.prog}: {sentence}")


def refuse(parser: argparse.ArgumentParser, error: BaseException) -> NoReturn:
    """Ends a command that cannot run, with ``PROGRAM: error: sentence`` and exit code 2."""
    parser.exit(2, f"{parser.prog}: error: {one_sentence(error)}\n")


def tell(problem: BaseException | str) -> None:
    """Prints a sentence: ``error: ...`` for an error, ``warning: ...`` for anything else."""
    if isinstance(problem, BaseException):
        problem = f"error: {one_sentence(problem)}"
    prefix = "" if problem.startswith("error: ") else "warning: "
    print(f"{prefix}{problem}", file=sys.stderr)
