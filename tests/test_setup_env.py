"""Setting up environments, with an interpreter and a pip that only pretend."""

import importlib
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from tests.fake_python import Fakes, wait_for

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"


@pytest.fixture(scope="module")
def environment():
    sys.path.insert(0, str(TOOLS))
    yield importlib.import_module("environment")
    sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def setup_env(environment):
    return importlib.import_module("setup_env")


@pytest.fixture
def fakes(tmp_path, monkeypatch, setup_env):
    result = Fakes(tmp_path)
    monkeypatch.setenv("FAKE_LOG", str(result.log))
    monkeypatch.setenv("SETUP_DISK_GB", "0")
    monkeypatch.setattr(sys, "executable", str(result.python))
    monkeypatch.setattr(setup_env.signal, "signal", lambda *args: None)  # pytest keeps its own
    return result


def test_from_nothing_then_at_once(fakes, setup_env, capfd, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    assert setup_env.main(["--venv", str(fakes.venv)]) == 0
    build, libraries, detectron2, project = fakes.pip_calls()
    assert "wheel" in build
    assert {"torch>=2.4", "opencv-python-headless"} < set(libraries)
    assert "--no-deps" in detectron2
    assert detectron2[-1].startswith("sal-detectron2==")
    assert project[-2:] == ["--editable", "."]
    assert "/somewhere/else" not in fakes.log.read_text()
    # Only the Python part: no binary of another Python, no package named `tools`.
    site = fakes.venv / "site"
    names = {path.relative_to(site).as_posix() for path in site.rglob("*")}
    assert "detectron2/__init__.py" in names
    assert not any(name.startswith(("tools", "detectron2/_C")) for name in names)
    assert not (fakes.venv / ".atss_d2" / "tmp").exists()

    assert setup_env.main(["--venv", str(fakes.venv)]) == 0
    assert len(fakes.pip_calls()) == 4
    assert "is ready" in capfd.readouterr().out.splitlines()[-1]


def test_other_requirements_run_pip_again_and_keep_detectron2(fakes, setup_env):
    setup_env.main(["--venv", str(fakes.venv)])
    (fakes.venv / ".atss_d2" / "stamp").write_text("key of other requirements")
    (fakes.venv / "site" / "detectron2" / "mine.py").touch()
    assert setup_env.main(["--venv", str(fakes.venv)]) == 0
    assert len(fakes.pip_calls()) == 4 + 3
    assert (fakes.venv / "site" / "detectron2" / "mine.py").exists()


@pytest.mark.parametrize("step", ["wheel", "torch>=2.4", "sal-detectron2", "--editable"])
def test_no_network_is_one_sentence_and_the_next_run_completes(
    fakes, setup_env, capfd, monkeypatch, step
):
    monkeypatch.setenv("FAKE_PIP", step)
    assert setup_env.main(["--venv", str(fakes.venv)]) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: no network")
    assert "No matching distribution found for torch>=2.4" in last
    assert not (fakes.venv / ".atss_d2" / "stamp").exists()
    monkeypatch.setenv("FAKE_PIP", "")
    assert setup_env.main(["--venv", str(fakes.venv)]) == 0
    assert (fakes.venv / "site" / "detectron2" / "__init__.py").exists()
    assert fakes.log.read_text().count("venv\n") == 1  # what was made is kept


def test_a_failed_change_is_not_taken_for_ready(fakes, setup_env, environment, monkeypatch):
    setup_env.main(["--venv", str(fakes.venv)])
    with monkeypatch.context() as change:
        change.setattr(environment, "DETECTRON2", "another==1.0")
        change.setenv("FAKE_PIP", "torch>=2.4")
        assert setup_env.main(["--venv", str(fakes.venv)]) == 1
    # Back to the requirements of the first run, in an environment that may be between the two.
    assert not environment.Environment(fakes.venv).is_ready()


def test_terminated_run_leaves_no_stamp_and_the_next_completes(fakes, setup_env, monkeypatch):
    fakes.make_ours()
    monkeypatch.undo()  # a real interpreter for the command
    process = fakes.start(FAKE_PIP="hang", FAKE_LOG=str(fakes.log), SETUP_DISK_GB="0")
    wait_for(fakes.pip_calls)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "the next run goes on" in output
    assert not (fakes.venv / ".atss_d2" / "stamp").exists()
    process = fakes.start(FAKE_LOG=str(fakes.log), SETUP_DISK_GB="0")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def test_two_runs_at_once_install_once(fakes, monkeypatch):
    fakes.make_ours()
    monkeypatch.undo()
    variables = {"FAKE_PIP": "slow", "FAKE_LOG": str(fakes.log), "SETUP_DISK_GB": "0"}
    first = fakes.start(**variables)
    wait_for(fakes.pip_calls)
    second = fakes.start(**variables)
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert len(fakes.pip_calls()) == 4
    assert "waiting for it" in outputs[1]


def test_a_half_installed_package_is_installed_anew(fakes, setup_env):
    site = fakes.make_ours(torch="2.4")
    whole, half = site / "whole-1.0.dist-info", site / "half-1.0.dist-info"
    whole.mkdir()
    (whole / "RECORD").touch()
    half.mkdir()
    assert setup_env.main(["--venv", str(fakes.venv)]) == 0
    assert whole.exists()
    assert not half.exists()


def test_our_environment_without_its_python_is_made_anew(fakes, setup_env):
    site = fakes.make_ours()
    (fakes.venv / "bin" / "python").unlink()
    (fakes.venv / "bin" / "python").symlink_to("/nowhere/python3.9")
    (site / "leftover.py").touch()
    assert setup_env.main(["--venv", str(fakes.venv)]) == 0
    assert fakes.log.read_text().count("venv\n") == 1
    assert not (site / "leftover.py").exists()


def test_an_installed_detectron2_is_used_as_it_is(fakes, setup_env, capfd):
    site = fakes.make_venv(torch="2.5.1+cu121", setuptools="82.0", **{"opencv-python": "4.9"})
    (site / "detectron2").mkdir()
    (site / "detectron2" / "__init__.py").write_text("mine")
    assert setup_env.main(["--venv", str(fakes.venv)]) == 0
    libraries, project = fakes.pip_calls()
    assert not any("opencv" in argument or "setuptools" in argument for argument in libraries)
    assert "pycocotools>=2.0.7" in libraries
    assert project[-1] == "."
    assert (site / "detectron2" / "__init__.py").read_text() == "mine"
    assert not (fakes.venv / ".atss_d2" / "made_here").exists()
    assert "used as it is" in capfd.readouterr().out


def test_a_broken_detectron2_of_somebody_else_stays(fakes, setup_env, capfd):
    site = fakes.make_venv(detectron2="0.6")
    (site / "detectron2").mkdir()
    assert setup_env.main(["--venv", str(fakes.venv)]) == 1
    assert "does not import, mend it first: ModuleNotFoundError" in capfd.readouterr().err
    assert not any(site.glob("detectron2/*"))


@pytest.mark.parametrize("kind", ["global", "no python", "no folder"])
def test_what_is_no_environment_is_left_alone(fakes, setup_env, capfd, kind):
    site = fakes.make_venv()
    if kind == "global":
        (site / "global").touch()
    elif kind == "no python":
        (fakes.venv / "bin" / "python").unlink()
    else:
        shutil.rmtree(fakes.venv)
        fakes.venv.write_text("a file")
    before = sorted(fakes.venv.rglob("*"))
    assert setup_env.main(["--venv", str(fakes.venv)]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert str(fakes.venv) in error
    assert sorted(fakes.venv.rglob("*")) == before


def test_low_disk(fakes, setup_env, environment, capfd, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage(9e9, 5e9, 4e9))
    monkeypatch.delenv("SETUP_DISK_GB")
    assert setup_env.main(["--venv", str(fakes.venv)]) == 1
    assert "has 4.0 GB free, and 9 GB are needed" in capfd.readouterr().err
    assert fakes.pip_calls() == []
    monkeypatch.setenv("SETUP_DISK_GB", "3")
    environment.check_disk(fakes.venv / "deep" / "er", 9.0)
    monkeypatch.setenv("SETUP_DISK_GB", "lots")
    with pytest.raises(environment.SetupError, match="must be a number of GB, got 'lots'"):
        environment.check_disk(fakes.venv, 9.0)


def test_old_python_and_missing_modules(fakes, setup_env, environment, capfd, monkeypatch):
    setup_env.check_version("python", (3, 10, 0), "")
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    assert setup_env.main(["--venv", str(fakes.venv)]) == 1
    error = capfd.readouterr().err
    assert "needs Python 3.10 or newer" in error
    assert "is Python 3.9.18" in error
    assert not fakes.venv.exists()
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


def test_key_depends_on_requirements(environment, fakes, monkeypatch, tmp_path):
    fakes.make_venv()
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "requirements", root / "requirements")
    shutil.copy(ROOT / "setup.py", root)
    monkeypatch.setattr(environment, "ROOT", root)
    env = environment.Environment(fakes.venv)
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
