#!/usr/bin/env python3
"""Makes the virtual environment that the ``make`` targets run in; a second run has nothing to do.

    python3 tools/setup_env.py [--venv .venv]

Only the standard library is used: this runs before anything is installed, and everything is
installed inside the environment. The next run completes one that was stopped, and simultaneous runs
wait for each other. An environment that somebody else made (``--venv``) keeps what it has, above
all its Detectron2 and its torch: only missing packages are added.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from environment import (
    DETECTRON2,
    DETECTRON2_PYTHON,
    ROOT,
    Environment,
    SetupError,
    check_disk,
    locked,
    pip_install,
    say,
    size_gb,
)

MIN_PYTHON = (3, 10)
# 6 for the environment, mostly torch with CUDA, and 3 for downloads during the set-up.
DISK_GB = 9.0


def python_name(version: Sequence[int]) -> str:
    """Returns ``Python 3.10`` for ``(3, 10)``."""
    return "Python " + ".".join(map(str, version))


def read_requirements(*names: str) -> list[str]:
    """Returns the requirements in files of ``requirements/``, without comments."""
    lines = []
    for name in names:
        lines += (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def canonical(requirement: str) -> str:
    """Returns the package name of a requirement in the spelling of the package index."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", name.group()).lower() if name else ""


def check_version(owner: str, version: Sequence[int], fix: str) -> None:
    """Checks that a Python is new enough.

    Raises:
        SetupError: It is older than ``MIN_PYTHON``.
    """
    if tuple(version[:2]) < MIN_PYTHON:
        raise SetupError(
            f"atss_d2 needs {python_name(MIN_PYTHON)} or newer, but {owner} is "
            f"{python_name(version)}; {fix}"
        )


def check_modules() -> None:
    """Checks that the Python that runs this script can make environments.

    Raises:
        SetupError: It lacks the modules for that, as on Debian.
    """
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(
            f"{sys.executable} has no module {missing[0]}; install it (on Debian and Ubuntu: "
            f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv), or name "
            "another Python: make setup PYTHON=/path/to/python3"
        )


def check_foreign(env: Environment) -> dict[str, Any]:
    """Checks an environment that this script did not make, before anything is written to it.

    Returns:
        What :meth:`Environment.inspect` found.

    Raises:
        SetupError: It is not an environment, or not a usable one.
    """
    facts = env.inspect()
    if facts is None:
        raise SetupError(
            f"{env.path} is not empty and has no working bin/python; name a virtual environment "
            "or a new folder with VENV=, or move that folder away"
        )
    if not facts["is_environment"]:
        raise SetupError(
            f"{env.path} is not a virtual environment, and nothing is installed outside of one; "
            "make one with `python3 -m venv`, with --system-site-packages to see what is installed"
        )
    check_version(str(env.python), facts["version"], "name another environment with VENV=")
    if not facts["has_pip"]:
        raise SetupError(f"{env.path} has no pip; add it: {env.python} -m ensurepip")
    return facts


def make(env: Environment) -> dict[str, Any]:
    """Makes our environment, unless it exists and works.

    Returns:
        What :meth:`Environment.inspect` found.

    Raises:
        SetupError: It cannot be made.
    """
    facts = env.inspect()
    if facts is None or not facts["has_pip"]:
        check_modules()
        (env.state / "made_here").touch()
        # Leftovers of a stopped run, or an environment whose Python is gone.
        for entry in env.path.iterdir():
            if entry.is_dir() and not entry.is_symlink() and entry != env.state:
                shutil.rmtree(entry)
            elif entry != env.state:
                entry.unlink()
        say(f"making {env.path} with {python_name(sys.version_info[:3])}")
        command = [sys.executable, "-I", "-m", "venv", str(env.path)]
        result = subprocess.run(command, capture_output=True, text=True, env=env.environ())
        facts = env.inspect()
        if result.returncode or facts is None:
            lines = (result.stderr + result.stdout).strip().splitlines() or ["no message"]
            raise SetupError(f"python -m venv {env.path} failed: {lines[-1]}")
    # pip writes RECORD last: a package without it is incomplete, which pip would not notice.
    for info in Path(facts["purelib"]).glob("*.dist-info"):
        if not (info / "RECORD").exists():
            shutil.rmtree(info)
    return env.inspect() or facts


def choose_requirements(
    installed: dict[str, str], *, ours: bool, detectron2_imports: bool
) -> tuple[list[str], list[str]]:
    """Decides what pip should install.

    Args:
        installed: Version of each installed distribution by name.
        ours: Whether this script made the environment; otherwise only the test tools in it may
            change.
        detectron2_imports: Whether a working Detectron2 is installed, which proves that its
            libraries work.

    Returns:
        Requirements, and constraints on what they may change.
    """
    names = {canonical(name) for name in installed}
    extras = "export", "convert", "evaluation"
    wanted = read_requirements("build", "base", "detectron2", *extras, "dev")
    # The four builds of OpenCV own the same folder, so an installed one must be the only one.
    if any(name.startswith("opencv-") for name in names):
        wanted = [line for line in wanted if not canonical(line).startswith("opencv-")]
    if ours:
        return wanted, []
    # Without a new enough exporter its tests are skipped.
    optional = {line for line in read_requirements(*extras) if canonical(line) in names}
    wanted = [line for line in wanted if line not in optional]
    if detectron2_imports:
        proven = set(read_requirements("build", "detectron2"))
        wanted = [line for line in wanted if line not in proven or canonical(line) not in names]
    tools = {canonical(line) for line in read_requirements("dev")}
    keep = [
        f"{name}=={version}"
        for name, version in sorted(installed.items())
        if canonical(name) not in tools and re.fullmatch(r"\d[\w.+!]*", version)
    ]
    return wanted, keep


def install_detectron2(env: Environment, facts: dict[str, Any], lock: int) -> None:
    """Installs the Python part of Detectron2, unless a working one is installed.

    Raises:
        SetupError: A Detectron2 that somebody else installed cannot be imported, or pip failed.
    """
    error = env.import_error("detectron2, detectron2.model_zoo")
    if error is None:
        say("Detectron2 is there and is used as it is")
        return
    if facts["has_detectron2"] and (not env.is_ours or "detectron2" in facts["installed"]):
        raise SetupError(f"the Detectron2 in {env.path} does not import, fix it first: {error}")
    say("Detectron2, the Python part (no compiler needed)")
    staging = env.state / "tmp" / "detectron2"
    arguments = ["--no-deps", "--only-binary=:all:", "--python-version", DETECTRON2_PYTHON]
    pip_install(env, [*arguments, "--target", str(staging), DETECTRON2], lock)
    # Compiled for one Python and an old torch; without them all Pythons behave the same.
    for binary in (staging / "detectron2").glob("_C.*"):
        binary.unlink()
    # Moved as a whole at the end, so that a stopped run leaves none rather than half. The rest
    # of the wheel is a package named `tools`, which would hide those of this and other projects.
    for folder in [*staging.glob("*.dist-info"), staging / "detectron2"]:
        target = Path(facts["purelib"], folder.name)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)


def set_up(path: Path) -> None:
    """Makes, fills and checks the environment.

    Args:
        path: Folder of the environment; made if it does not exist.

    Raises:
        SetupError: Something is missing; nothing outside the environment was changed.
    """
    env = Environment(path)
    if not env.is_ready():
        if not env.is_ours:
            check_foreign(env)
        with locked(env) as lock:
            if not env.is_ready():  # otherwise another run has finished it meanwhile
                _fill(env, lock)
    say(f"{path} is ready")


def _fill(env: Environment, lock: int) -> None:
    scratch = env.state / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    (env.state / "stamp").unlink(missing_ok=True)
    scratch.mkdir()
    ours = env.is_ours
    has_torch = "torch" in ((env.inspect() or {}).get("installed", {}))
    check_disk(env.path, 1.0 if has_torch else max(1.0, DISK_GB - size_gb(env.path)))
    facts = make(env) if ours else check_foreign(env)
    imports = facts["has_detectron2"] and env.import_error("detectron2.model_zoo") is None
    wanted, keep = choose_requirements(facts["installed"], ours=ours, detectron2_imports=imports)
    constraints = scratch / "constraints.txt"
    constraints.write_text("\n".join(keep))
    try:
        if ours:  # needed to build some of the others from source
            pip_install(env, ["--quiet", *read_requirements("build")], lock)
        say("libraries (torch is the large one)")
        pip_install(env, ["--constraint", str(constraints), *wanted], lock)
    except SetupError as error:
        if ours:
            raise
        raise SetupError(f"in {env.path}, where nothing installed is changed: {error}") from None
    install_detectron2(env, facts, lock)
    say("atss_d2 itself, editable")
    pip_install(env, ["--quiet", "--no-deps", "--no-build-isolation", "--editable", "."], lock)
    for modules in ("torch, torchvision", "cv2", "detectron2, detectron2.model_zoo"):
        error_line = env.import_error(modules)
        if error_line:
            raise SetupError(f"installed in {env.path}, but `import {modules}` fails: {error_line}")
    shutil.rmtree(scratch, ignore_errors=True)
    (env.state / "stamp").write_text(env.key() or "")


def _stop(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder (.venv)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    try:
        fix = "name another one: make setup PYTHON=/path/to/python3"
        check_version(sys.executable, sys.version_info[:3], fix)
        set_up(Path(os.path.abspath(args.venv.expanduser())))
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        place = error.filename or args.venv
        print(
            f"error: {error.strerror or error}: {place}; fix it or choose another VENV=",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("setup: stopped; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
