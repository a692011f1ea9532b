"""Commands of a checkout, each in a fork of one process that has imported torch and atss_d2.

The imports take three CPU seconds, and the documents have some forty commands. A fork is a fresh
process with the arguments, the streams and the exit code of ``python ARGUMENTS``. The start of an
interpreter of its own is tested in test_train_net.py, test_start_project.py and others.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path


class Session:
    """Runs commands in a folder; to be closed.

    Args:
        folder: The working directory, a checkout.
        environment: Of all commands.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._streams = [str(folder.parent / name) for name in ("stdout", "stderr")]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        """Runs ``python ARGUMENTS``: a script, or ``-m`` or ``-c`` and what belongs to it."""
        self._process.stdin.write(json.dumps([arguments, self._streams]) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        texts = [Path(path).read_text(errors="replace") for path in self._streams]
        return subprocess.CompletedProcess(["python", *arguments], code, *texts)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _serve() -> None:
    for line in sys.stdin:
        arguments, streams = json.loads(line)
        child = os.fork()
        if not child:
            _run(arguments, streams)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(arguments: list[str], streams: list[str]) -> None:
    """Does what the interpreter does with its command line, and ends the process."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, flags), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = 0
    try:
        _execute(*arguments)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # to take torch apart would take half a second


def _execute(how: str, *rest: str) -> None:
    if how == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif how == "-m":
        sys.path[0], sys.argv = os.getcwd(), list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(how).resolve().parent), [how, *rest]
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = os.getcwd()
    import atss_d2  # noqa: F401

    # isort: split
    import torch.utils.tensorboard  # noqa: F401
    from detectron2 import engine, evaluation  # noqa: F401

    gc.freeze()
    _serve()
