"""Runs every check in a process of its own: a failure or an exhausted memory hides no other."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .registry import CHECKS, Check, Environment, Outcome, Skipped

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 3  # times the expected seconds, before a check is stopped
_LEAST_SECONDS = 90


def run_here(name: str, env: Environment) -> Outcome:
    """Runs a check in this process; no error leaves it."""
    start = time.monotonic()
    torch.manual_seed(0)
    try:
        result, figure = "passed", CHECKS[name].run(env)
    except Skipped as reason:
        result, figure = "skipped", str(reason)
    except Exception as error:
        traceback.print_exc()
        words = " ".join(str(error).split()) or "see above"
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        result, figure = "FAILED", f"{kind}{words[:300]}"
    return Outcome(name, result, figure, time.monotonic() - start)


def run_all(
    names: Sequence[str],
    *,
    device: str,
    tiny: bool,
    num_gpus: int,
    seconds: float,
    say: Callable[[Outcome], None],
) -> list[Outcome]:
    """Runs checks one after the other.

    Args:
        names: See :data:`CHECKS`.
        device: See :class:`Environment`.
        tiny: See there.
        num_gpus: How many there are; a check that needs more is skipped.
        seconds: For all; what does not fit is not run, and counts as a failure.
        say: Gets every outcome.
    """
    end = time.monotonic() + seconds
    outcomes = []
    for name in names:
        left = end - time.monotonic()
        if CHECKS[name].num_gpus > num_gpus:
            needed = f"needs {CHECKS[name].num_gpus} GPUs, there is {num_gpus}"
            outcome = Outcome(name, "skipped", needed, 0.0)
        elif left < CHECKS[name].seconds / 2:
            outcome = Outcome(name, "not run", "the time is over: raise --minutes", 0.0)
        else:
            outcome = _in_process(CHECKS[name], device, tiny, left)
        outcomes.append(outcome)
        say(outcome)
    return outcomes


def _in_process(check: Check, device: str, tiny: bool, left: float) -> Outcome:
    start = time.monotonic()
    limit = min(max(_PATIENCE * check.seconds, _LEAST_SECONDS), left)
    with tempfile.TemporaryDirectory(prefix="atss_gpu_") as folder:
        path = Path(folder) / "outcome.json"
        command = [sys.executable, "-m", "benchmarks.gpu", "--one", check.name, str(path)]
        command += ["--device", device, *["--tiny"] * tiny]
        # cuBLAS needs the first for deterministic results.
        environ = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ, "PYTHONPATH": str(ROOT)}
        with (Path(folder) / "log.txt").open("w+") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
            try:
                code = process.wait(limit)
                why = f"the process died with exit code {code}"
            except subprocess.TimeoutExpired:
                why = f"no end after {limit:.0f} s"
            finally:
                _end(process)
            log.seek(0)
            text = log.read().rstrip()
        seconds = time.monotonic() - start
        if path.is_file():
            outcome = Outcome(**json.loads(path.read_text()))
            outcome = dataclasses.replace(outcome, seconds=seconds)
        else:
            last = text.splitlines()[-1] if text else "it printed nothing"
            outcome = Outcome(check.name, "FAILED", f"{why}: {last}", seconds)
    if outcome.is_bad and text:
        print(f"--- {check.name}\n{text[-4000:]}\n---", file=sys.stderr)
    return outcome


def _end(process: subprocess.Popen) -> None:
    """Ends a check and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
