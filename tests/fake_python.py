"""An interpreter and a pip that only pretend, to set up environments without a network."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SETUP_ENV = Path(__file__).resolve().parent.parent / "tools" / "setup_env.py"

# Plays the system's Python (`-m venv`), an environment's Python (imports) and its pip. Packages are
# lines of site/installed.json; each call of pip is a line of $FAKE_LOG.
FAKE_PYTHON = """
import json, os, pathlib, shutil, sys, time
me, args = pathlib.Path(sys.argv[1]), sys.argv[2:]
site = me.parent.parent / "site"
book = site / "installed.json"
installed = json.loads(book.read_text()) if book.exists() else {}
log = open(os.environ["FAKE_LOG"], "a")
if args[:3] == ["-I", "-m", "venv"]:
    target = pathlib.Path(args[3])
    (target / "bin").mkdir(parents=True)
    (target / "site").mkdir()
    shutil.copy(me, target / "bin" / "python")
    print("venv", file=log, flush=True)
elif args[:3] == ["-I", "-m", "pip"]:
    print("pip", json.dumps(args[4:]), os.environ.get("PYTHONPATH"), file=log, flush=True)
    mode = os.environ.get("FAKE_PIP", "")
    if mode == "slow":
        time.sleep(0.5)
    elif mode == "hang":
        time.sleep(60)
    elif mode and mode in " ".join(args):
        print("WARNING: after connection broken by 'NewConnectionError(...)': /torch/",
              file=sys.stderr)
        print("ERROR: No matching distribution found for torch>=2.4", file=sys.stderr)
        sys.exit(1)
    if "--target" in args:
        target = pathlib.Path(args[args.index("--target") + 1])
        for name in ("detectron2", "tools", "sal_detectron2-0.7.2.dist-info"):
            (target / name).mkdir(parents=True)
            (target / name / "__init__.py").touch()
            (target / name / "RECORD").touch()
        (target / "detectron2" / "_C.cpython-310.so").touch()
    else:
        for name in args[4:]:
            if name[0].isalpha():
                installed[name.split(">")[0].split("=")[0]] = "1.0"
        book.write_text(json.dumps(installed))
elif "importlib.metadata" in args[-1]:
    facts = {"version": [3, 11, 7], "is_environment": not (site / "global").exists(),
             "purelib": str(site), "has_pip": True, "installed": installed,
             "has_detectron2": (site / "detectron2").exists()}
    print(json.dumps(facts))
elif "sys.version" in args[-1]:
    print("3.11.7")
elif "detectron2" in args[-1] and not (site / "detectron2" / "__init__.py").exists():
    sys.exit("ModuleNotFoundError: No module named 'detectron2'")
elif "torch" in args[-1] and "torch" not in installed:
    sys.exit("ModuleNotFoundError: No module named 'torch'")
"""


class Fakes:
    """A fake interpreter in ``folder``, and what pip was asked for."""

    def __init__(self, folder: Path) -> None:
        self.venv = folder / "my venv"
        self.log = folder / "log.txt"
        self.python = folder / "fake_python"
        (folder / "fake.py").write_text(FAKE_PYTHON)
        self.python.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -I "{folder}/fake.py" "$0" "$@"\n'
        )
        self.python.chmod(0o755)

    def make_venv(self, **installed: str) -> Path:
        """An environment that somebody else made; returns its site-packages."""
        (self.venv / "bin").mkdir(parents=True)
        shutil.copy(self.python, self.venv / "bin" / "python")
        site = self.venv / "site"
        site.mkdir()
        (site / "installed.json").write_text(json.dumps(installed))
        return site

    def make_ours(self, **installed: str) -> Path:
        """An environment as a stopped run leaves it; returns its site-packages."""
        site = self.make_venv(**installed)
        (self.venv / ".atss_d2").mkdir()
        (self.venv / ".atss_d2" / "made_here").touch()
        return site

    def pip_calls(self) -> list[list[str]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line[4 : line.rindex("]") + 1]) for line in lines if line[:3] == "pip"]

    def start(self, **variables: str) -> subprocess.Popen:
        """The command itself, in a process of its own."""
        return subprocess.Popen(
            [sys.executable, str(SETUP_ENV), "--venv", str(self.venv)],
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def wait_for(condition: Callable[[], object]) -> None:
    """Returns as soon as the condition holds."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "nothing happened within 120 s"
        time.sleep(0.02)
