"""Setting up environments: what needs no pip. `make setup` itself runs before every suite."""

import importlib
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"


@pytest.fixture(scope="module")
def environment():
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module("environment")
    sys.path.remove(str(TOOLS))


@pytest.fixture
def setup_env(environment, monkeypatch):
    module = importlib.import_module("setup_env")
    monkeypatch.setattr(module.signal, "signal", lambda *args: None)  # pytest keeps its own
    monkeypatch.setenv("SETUP_DISK_GB", "0")
    return module


@pytest.mark.parametrize("kind", ["a file", "no python"])
def test_what_is_no_environment_is_left_alone(tmp_path, setup_env, capfd, kind):
    venv = tmp_path / "venv"
    if kind == "a file":
        venv.write_text("mine")
    else:
        venv.mkdir()
        (venv / "mine.txt").touch()
    before = sorted(venv.rglob("*"))
    assert setup_env.main(["--venv", str(venv)]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert str(venv) in error
    assert sorted(venv.rglob("*")) == before


def test_low_disk(tmp_path, setup_env, environment, capfd, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage(9e9, 5e9, 4e9))
    monkeypatch.delenv("SETUP_DISK_GB")
    assert setup_env.main(["--venv", str(tmp_path / "venv")]) == 1
    assert "has 4.0 GB free, and 9 GB are needed" in capfd.readouterr().err
    monkeypatch.setenv("SETUP_DISK_GB", "3")
    environment.check_disk(tmp_path / "deep" / "er", 9.0)
    monkeypatch.setenv("SETUP_DISK_GB", "lots")
    with pytest.raises(environment.SetupError, match="must be a number of GB, got 'lots'"):
        environment.check_disk(tmp_path, 9.0)


def test_old_python_and_missing_modules(tmp_path, setup_env, environment, capfd, monkeypatch):
    setup_env.check_version("python", (3, 10, 0), "")
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    assert setup_env.main(["--venv", str(tmp_path / "venv")]) == 1
    error = capfd.readouterr().err
    assert "needs Python 3.10 or newer" in error
    assert "is Python 3.9.18" in error
    assert not (tmp_path / "venv").exists()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(environment.SetupError, match=r"no module venv; .*python3\.9-venv"):
        setup_env.check_modules()


@pytest.mark.parametrize(
    ("lines", "returncode", "expected"),
    [
        (["OSError: [Errno 28] No space left on device"], 2, "the disk is full"),
        (["Temporary failure in name resolution", "ERROR: No match"], 1, r"no network: .*No match"),
        (["ERROR: Cannot install a", "ERROR: ResolutionImpossible: for help"], 1, "Cannot install"),
        (["error: build failed", "hint: see above"], 1, r"pip failed \(pip: build failed\)"),
        ([], 3, "exit status 3"),
        ([], -9, "SIGKILL"),
    ],
)
def test_explain_pip(environment, lines, returncode, expected):
    assert re.search(expected, environment.explain_pip(lines, returncode))


def test_child_processes_see_only_the_environment(environment, monkeypatch, tmp_path):
    for name in ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX"):
        monkeypatch.setenv(name, "/somewhere/else")
    monkeypatch.setenv("PIP_USER", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.invalid/simple")
    environ = environment.Environment(tmp_path).environ()
    assert "/somewhere/else" not in environ.values()
    assert environ["PIP_USER"] == "0"
    assert environ["PYTHONNOUSERSITE"] == "1"
    assert environ["PIP_INDEX_URL"] == "https://mirror.invalid/simple"
    assert Path(environ["TMPDIR"]).is_relative_to(tmp_path)


def test_key_depends_on_requirements(environment, monkeypatch, tmp_path):
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    shutil.copy(ROOT / "setup.py", root)
    monkeypatch.setattr(environment, "ROOT", root)
    env = environment.Environment(Path(sys.prefix))
    before = env.key()
    assert env.key() == before
    with (root / "requirements" / "dev.txt").open("a") as file:
        file.write("another\n")
    assert env.key() != before


def test_choose_requirements_keeps_what_somebody_else_installed(setup_env):
    installed = {"torch": "2.5.1+cu121", "ruff": "0.1", "Odd": "unknown", "setuptools": "82.0"}
    wanted, keep = setup_env.choose_requirements(installed, ours=False, detectron2_imports=False)
    assert keep == ["setuptools==82.0", "torch==2.5.1+cu121"]
    assert "setuptools>=64,<82" in wanted
    wanted, keep = setup_env.choose_requirements(installed, ours=True, detectron2_imports=False)
    assert keep == []
    assert "opencv-python-headless" in wanted
