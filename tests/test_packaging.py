"""What ends up in a wheel, and that versions and requirements agree wherever they are written."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import atss_d2

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
FOLDERS = ("atss_d2", "configs", "requirements")
# Import name -> distribution, where they differ.
DISTRIBUTIONS = {"PIL": "pillow", "hydra": "hydra-core", "yaml": "yacs"}
# Needs no requirement: the user's choice (see setup.py), or used only where it is installed.
OPTIONAL = {"atss_d2", "detectron2", "cv2"}


def files_of(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def run_python(code: str, **options) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what packaging reads, so that building leaves nothing in the real one.

    Also of ``ablations``, ``benchmarks`` and ``examples``, which must not end up in a wheel.
    """
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    for name in (*FOLDERS, "ablations", "benchmarks", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # A config of an earlier build must not survive in this one.
    stale = checkout / "build" / "lib" / "atss_d2" / "configs" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--wheel-dir", str(folder), str(checkout)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_wheel_holds_the_package_and_the_configs(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {f"atss_d2/{name}" for name in files_of(ROOT / "atss_d2")}
    expected |= {f"atss_d2/configs/{name}" for name in files_of(ROOT / "configs")}
    assert names == expected


def test_all_configs_load_in_an_unpacked_wheel(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "import atss_d2; from atss_d2.config import list_configs; print(atss_d2.__file__); "
    code += "print(*[name for name in list_configs() if atss_d2.get_config(name) is not None])"
    output = run_python(code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    file, names = output.splitlines()
    assert file.startswith(str(tmp_path))
    assert {"coco/atss_R_50_FPN_1x", "demo/atss_mobilenetv2_shapes_wide_tta"} <= set(names.split())


def test_metadata(metadata):
    assert metadata["Version"] == atss_d2.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License"] == "Apache-2.0"
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert any(line.startswith("torch>=") for line in required)
    assert not any(re.match("opencv|detectron2|sal", line) for line in required)


def test_setup_imports_nothing_heavy(checkout):
    blocked = ["torch", "torchvision", "numpy", "detectron2", "atss_d2"]
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked})); "
    code += "sys.argv = ['setup.py', '--version']; runpy.run_path('setup.py', run_name='__main__')"
    assert run_python(code, cwd=checkout).strip() == atss_d2.__version__


def test_editable_install_uses_the_folders_of_the_checkout(checkout, tmp_path):
    code = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        text = "".join(archive.read(name).decode() for name in names)
    assert not any("configs" in name for name in names)
    assert str(checkout) in text


def test_source_distribution_holds_what_setup_reads(checkout, tmp_path):
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    expected = {f"{folder}/{name}" for folder in FOLDERS for name in files_of(ROOT / folder)}
    assert expected | set(SOURCES) <= names


def test_every_import_is_required():
    """What the package imports at the top of its modules comes with ``pip install .``."""
    lines = (ROOT / "requirements" / "base.txt").read_text().splitlines()
    declared = {re.split("[<>=]", line)[0] for line in lines if line and line[0] != "#"}
    for path in sorted((ROOT / "atss_d2").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for name in {module.split(".")[0] for module in modules}:
                known = name in (*sys.stdlib_module_names, *OPTIONAL, "atss_d2_cli")
                assert known or DISTRIBUTIONS.get(name, name) in declared, f"{name} in {path}"


def test_ruff_is_the_same_everywhere():
    pinned = re.search(r"^ruff==(\S+)$", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE)
    hooks = re.findall(r"ruff==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks
    assert set(hooks) == {pinned.group(1)}


def test_least_python_is_the_same_everywhere():
    texts = {
        "setup.py": r'python_requires=">=(\d+)\.(\d+)"',
        "Makefile": r"sys\.version_info < \((\d+), (\d+)\)",
        "tools/setup_env.py": r"MIN_PYTHON = \((\d+), (\d+)\)",
        "pyproject.toml": r'target-version = "py(\d)(\d+)"',
    }
    found = {name: re.search(texts[name], (ROOT / name).read_text()).groups() for name in texts}
    assert set(found.values()) == {("3", "10")}, found
