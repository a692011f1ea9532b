"""Runs the study as processes, several at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .runs import METRICS, Run

_POLL_SECONDS = 0.1
_CONSOLE = "console.log"


def command(
    run: Run, train_net: Path, *, num_gpus: int | None = 1, starter: Sequence[str] = ("python",)
) -> str:
    """Returns the command line of a run, to paste into a shell."""
    script = os.path.relpath(train_net)
    return shlex.join([*starter, script, *run.arguments(num_gpus=num_gpus)])


def execute(
    runs: Sequence[Run],
    train_net: Path,
    *,
    jobs: int = 1,
    threads: int = 1,
    num_gpus: int | None = 1,
    starter: Sequence[str] = (sys.executable,),
    say: Callable[[str], None] = print,
) -> list[Run]:
    """Runs train_net.py for every run that is not finished.

    The output of a run goes to ``console.log`` in its folder. A failure does not stop the others.
    When this process is stopped, it stops its children, and a second call continues from their
    checkpoints.

    Args:
        runs: See :func:`plan_runs`.
        train_net: The script.
        jobs: Processes at a time.
        threads: Threads of each process.
        num_gpus: For train_net.py; only runs on COCO use more than one. None if ``starter`` is a
            program that starts several processes, such as torchrun.
        starter: Command that runs the script.
        say: Takes lines of progress.

    Returns:
        The runs that failed.
    """
    waiting = [run for run in runs if not run.is_finished()]
    total = len(waiting)
    if len(runs) > total:
        say(f"{len(runs) - total} of {len(runs)} runs are finished already")
    running: list[_Process] = []
    failed: list[Run] = []
    start, num_ended = time.monotonic(), 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                say(f"start   {run.name}{' (resumed)' if run.is_started() else ''}")
                running.append(_Process.start(run, train_net, threads, num_gpus, starter))
            time.sleep(_POLL_SECONDS)
            for process in [p for p in running if p.popen.poll() is not None]:
                running.remove(process)
                num_ended += 1
                outcome = _conclude(process)
                if outcome is None:
                    failed.append(process.run)
                    outcome = f"FAILED: {process.last_line()} (all of it: {process.console})"
                minutes = (time.monotonic() - start) / 60
                say(f"[{num_ended}/{total}, {minutes:.1f} min] {process.run.name}: {outcome}")
    finally:
        for process in running:  # empty unless interrupted
            process.popen.terminate()
        for process in running:
            process.popen.wait()
    return failed


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps a second study out of the same folder.

    Raises:
        BlockingIOError: Another study is using the folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another study is at work in {output}: wait for it, or give another --output"
            ) from None
        yield


@dataclass
class _Process:
    run: Run
    popen: subprocess.Popen
    started: float
    is_resumed: bool

    @classmethod
    def start(
        cls,
        run: Run,
        train_net: Path,
        threads: int,
        num_gpus: int | None,
        starter: Sequence[str],
    ) -> _Process:
        is_resumed = run.is_started()
        run.prepare()
        # Idle threads of one run would otherwise spin on the cores of the others.
        environ = os.environ | {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "0"}
        with (run.folder / _CONSOLE).open("w") as console:
            popen = subprocess.Popen(
                [*starter, str(train_net), *run.arguments(num_gpus=num_gpus)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environ,
            )
        return cls(run, popen, time.monotonic(), is_resumed)

    @property
    def console(self) -> Path:
        return self.run.folder / _CONSOLE

    def last_line(self) -> str:
        lines = self.console.read_text(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else f"exit status {self.popen.returncode}"


def _conclude(process: _Process) -> str | None:
    """Writes and returns the results of a run that has ended; None if it has none."""
    if process.popen.returncode:
        return None
    seconds = time.monotonic() - process.started
    try:
        result = process.run.write_result(seconds=None if process.is_resumed else seconds)
    except (OSError, ValueError):
        return None
    values = ", ".join(
        f"{name} {value:.1f}" for name in METRICS[:3] if (value := result.metrics[name]) is not None
    )
    return f"{values}, {seconds:.0f} s"
