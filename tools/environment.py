"""The virtual environment of ``tools/setup_env.py``, its lock, and pip inside it.

Uses only the standard library: this runs before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Upstream's Python source of April 2024, in a wheel tagged for Python 3.10.
DETECTRON2 = "sal-detectron2==0.7.2"
DETECTRON2_PYTHON = "3.10"

_INSPECT = """
import importlib.metadata, importlib.util, json, os, sys, sysconfig
conda = os.path.isdir(os.path.join(sys.prefix, "conda-meta"))
conda_base = os.path.isdir(os.path.join(sys.prefix, "condabin"))
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "is_environment": sys.prefix != sys.base_prefix or (conda and not conda_base),
    "purelib": sysconfig.get_paths()["purelib"],
    "has_pip": importlib.util.find_spec("pip") is not None,
    "has_detectron2": importlib.util.find_spec("detectron2") is not None,
    "installed": {d.name: d.version for d in importlib.metadata.distributions() if d.name},
}))
"""
_NETWORK_ERROR = re.compile(
    r"connection broken|ConnectionError|Max retries exceeded|name resolution|ProxyError|SSLError"
    r"|Network is unreachable|timed out",
    re.IGNORECASE,
)


class SetupError(RuntimeError):
    """The environment cannot be made; the message says in one sentence where and how to fix it."""


def say(text: str) -> None:
    """Prints one line of progress."""
    print(f"setup: {text}", flush=True)


class Environment:
    """A virtual environment and the state that this project keeps in it.

    Args:
        path: Folder of the environment; it does not have to exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.python = path / "bin" / "python"
        self.state = path / ".atss_d2"  # the lock, the stamp and pip's temporary files

    @property
    def is_ours(self) -> bool:
        """Whether this script made the environment, or is going to make it."""
        if (self.state / "made_here").exists() or not self.path.exists():
            return True
        return all(entry == self.state for entry in self.path.iterdir())

    def environ(self) -> dict[str, str]:
        """Returns environment variables for child processes, without the user's other Pythons.

        pip's settings for the package index, proxies and certificates pass through; those that
        would install packages elsewhere do not.
        """
        leaks = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON")
        environ = {name: value for name, value in os.environ.items() if name not in leaks}
        environ.update(PYTHONNOUSERSITE="1", PIP_USER="0", PIP_NO_INPUT="1")
        environ.update(PIP_DISABLE_PIP_VERSION_CHECK="1")
        # On some machines /tmp is a memory disk, too small for torch.
        environ.update(TMPDIR=str(self.state / "tmp"))
        return environ

    def run_python(self, code: str) -> subprocess.CompletedProcess[str] | None:
        """Runs code with the environment's interpreter; returns None if it does not start."""
        command = [str(self.python), "-I", "-W", "ignore", "-c", code]
        try:
            return subprocess.run(command, capture_output=True, text=True, env=self.environ())
        except OSError:
            return None

    def inspect(self) -> dict[str, Any] | None:
        """Returns the facts that ``_INSPECT`` prints; None if the interpreter does not run."""
        result = self.run_python(_INSPECT)
        return json.loads(result.stdout) if result and result.returncode == 0 else None

    def import_error(self, modules: str) -> str | None:
        """Returns the last line of the error from importing the modules; None if there is none."""
        result = self.run_python(f"import {modules}")
        if result is None or result.returncode == 0:
            return None if result else f"{self.python} does not run"
        lines = result.stderr.strip().splitlines()
        return lines[-1] if lines else f"the interpreter ended with status {result.returncode}"

    def key(self) -> str | None:
        """Returns a hash of all that determines what is installed; None without an interpreter."""
        version = self.run_python("import sys; print(sys.version)")
        if version is None or version.returncode:
            return None
        # An editable install points to this checkout, so its path is part of the key.
        digest = hashlib.sha256("\0".join((version.stdout, str(ROOT), DETECTRON2)).encode())
        for file in [*sorted((ROOT / "requirements").glob("*.txt")), ROOT / "setup.py"]:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def is_ready(self) -> bool:
        """Returns whether a set-up with the current requirements was completed here."""
        stamp = self.state / "stamp"
        return stamp.exists() and stamp.read_text() == self.key()


def size_gb(folder: Path) -> float:
    """Returns the size of all files in a folder in GB."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e9


def check_disk(folder: Path, needed_gb: float) -> None:
    """Checks the free space where a folder is, or will be.

    Args:
        folder: The folder; its nearest existing parent is checked.
        needed_gb: Required space in GB; the variable SETUP_DISK_GB overrides it.

    Raises:
        SetupError: There is less space.
    """
    text = os.environ.get("SETUP_DISK_GB", "")
    try:
        needed_gb = float(text) if text else needed_gb
    except ValueError:
        raise SetupError(f"SETUP_DISK_GB must be a number of GB, got {text!r}") from None
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free_gb = shutil.disk_usage(place).free / 1e9
    if free_gb < needed_gb:
        raise SetupError(
            f"not enough disk space: {place} has {free_gb:.1f} GB free, and {needed_gb:g} GB are "
            "needed; free some, or choose another place with VENV=/path/to/new/venv (a torch "
            "without CUDA needs less: SETUP_DISK_GB=3)"
        )


@contextmanager
def locked(env: Environment) -> Iterator[int]:
    """Keeps other runs out of the environment; yields the descriptor of the lock."""
    env.state.mkdir(parents=True, exist_ok=True)
    with (env.state / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up of {env.path} is at work; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def explain_pip(lines: Sequence[str], returncode: int) -> str:
    """Says in one sentence why pip failed.

    Args:
        lines: What pip wrote to its standard error.
        returncode: Its exit status.
    """
    text = "\n".join(lines)
    # "ResolutionImpossible" only points to pip's manual; the line before it names the problem.
    errors = [line for line in lines if re.match("error: (?!ResolutionImpossible)", line, re.I)]
    last = (errors or [line for line in lines if line.strip()] or [f"exit status {returncode}"])[-1]
    said = f"(pip: {re.sub('^error: *', '', last.strip(), flags=re.IGNORECASE)})"
    if returncode < 0:
        return f"pip was stopped by {signal.Signals(-returncode).name}; run the same again"
    if "no space left on device" in text.lower():
        return f"the disk is full; free some space and run the same again {said}"
    if _NETWORK_ERROR.search(text):
        return (
            "no network: pip cannot reach the package index; check the connection, or PIP_PROXY "
            f"and PIP_INDEX_URL, and run the same again {said}"
        )
    return f"pip failed {said}"


def pip_install(env: Environment, arguments: Sequence[str], lock: int) -> None:
    """Runs ``pip install`` in the environment and shows its progress.

    Args:
        env: Where to install.
        arguments: Arguments after ``pip install``.
        lock: Descriptor of the lock, inherited by pip: if this process is killed, a pip that is
            still running keeps the next run waiting.

    Raises:
        SetupError: pip failed, or cannot be run.
    """
    command = [str(env.python), "-I", "-m", "pip", "install", *arguments]
    lines: deque[str] = deque(maxlen=500)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env.environ(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=(lock,),
    ) as process:
        try:
            for line in process.stderr or ():
                sys.stderr.write(line)
                sys.stderr.flush()
                lines.append(line.rstrip("\n"))
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise SetupError(explain_pip(lines, process.returncode))
