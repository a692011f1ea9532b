"""The commands that a user types, with interpreters that only write down how they were called."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("help", "setup", "demo", "benchmarks", "test", "test-gpu", "lint", "clean")


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def run_make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # Variables of a `make` that runs these tests would change what this one prints.
    environ = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env={**environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def calls(tmp_path):
    """Fake interpreters, of the system and of an environment; each call is a line of the log."""
    log = tmp_path / "log.txt"
    text = f'echo "$1 $2 $3 [$PYTHONPATH] $PYTHONNOUSERSITE" >> "{log}"\n'
    python = write_script(tmp_path / "python", text)
    write_script(tmp_path / "a venv" / "bin" / "python", text)

    def run(*arguments: str, **variables: str) -> list[str]:
        variables = {"PYTHONPATH": "/somewhere/else", **variables}
        venv = tmp_path / "a venv"
        result = run_make(*arguments, f"PYTHON={python}", f"VENV={venv}", **variables)
        assert result.returncode == 0, result.stderr
        return log.read_text().splitlines()

    return run


def test_help_is_the_default_and_names_every_target():
    result = run_make()
    assert result.returncode == 0
    for target in TARGETS:
        assert re.search(rf"^  {target} +\S", result.stdout, re.MULTILINE), target


@pytest.mark.parametrize(
    ("arguments", "last"),
    [
        (["setup"], ["tools/prepare_data.py [] 1"]),
        (["demo", "DEMO_ARGS=--seed 1"], ["tools/run_demo.py --seed 1"]),
        (["benchmarks", "BENCHMARK_ARGS=--quick"], ["-m benchmarks --quick"]),
        (["test-gpu", "GPU_ARGS=nms"], ["-m benchmarks.gpu --document"]),
        (["test", "TEST_ARGS=-x"], ["-m ruff check", "-m ruff format", "-m pytest -x"]),
    ],
)
def test_targets_set_up_and_pass_arguments_on(calls, arguments, last):
    check, environment, data, *rest = [" ".join(line.split()) for line in calls(*arguments)]
    assert check.startswith("-c import sys")
    assert environment.startswith("tools/setup_env.py --venv ")
    assert environment.endswith(" [] 1")  # not the packages of the shell
    assert data == "tools/prepare_data.py [] 1"
    for line, start in zip(rest or [data], last, strict=True):
        assert line.startswith(start)


def test_venv_of_the_shell_is_not_taken(tmp_path):
    result = run_make("-n", "lint", VENV=str(tmp_path))
    assert '".venv/bin/python" -m ruff' in result.stdout
    assert str(tmp_path) not in result.stdout


def test_old_python_stops_with_one_sentence(tmp_path):
    python = write_script(
        tmp_path / "python", 'test "$1" = --version && echo Python 3.9.18 || exit 1\n'
    )
    result = run_make("demo", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode != 0
    sentence = result.stderr.splitlines()[0]
    assert sentence.startswith("error: atss_d2 needs Python 3.10 or newer")
    assert "Python 3.9.18; name another one: make demo PYTHON=" in sentence
    assert not (tmp_path / "venv").exists()
    missing = run_make("setup", f"PYTHON={tmp_path / 'none'}", f"VENV={tmp_path / 'venv'}")
    assert "not found" in missing.stderr.splitlines()[0]


def test_ci_runs_make_test(tmp_path):
    make = write_script(tmp_path / "make", 'echo "make $* CI=$CI in $PWD"; cat; exit 7\n')
    result = subprocess.run(
        [str(ROOT / ".ci" / "run")],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{make.parent}:{os.environ['PATH']}", "CI": ""},
        input="typed by somebody",
        capture_output=True,
        text=True,
    )
    assert result.stdout == f"make test CI=true in {ROOT}\n"
    assert result.returncode == 7
