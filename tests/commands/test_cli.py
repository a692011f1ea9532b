"""The console script, and that no command waits for torch before it has parsed its arguments."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

import atss_d2
import atss_d2_cli
from atss_d2.commands.errors import one_sentence

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(atss_d2_cli.COMMANDS)
HELP = """
import sys
import atss_d2_cli
try:
    atss_d2_cli.main([{command!r}, "--help"])
except SystemExit as end:
    heavy = {{"atss_d2", "torch", "detectron2", "numpy", "PIL"}} & set(sys.modules)
    print(end.code, sorted(heavy))
"""


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    process = python("-c", HELP.format(command=command))
    assert process.stdout.splitlines()[-1] == "0 []", process.stderr
    assert process.stdout.startswith(f"usage: atss-d2 {command}")


def test_commands_are_listed():
    process = python("-m", "atss_d2_cli", "--help")
    assert process.returncode == 0
    assert all(f"  {command}" in process.stdout for command in COMMANDS)
    assert python("-m", "atss_d2_cli").returncode == 2
    version = python("-m", "atss_d2_cli", "--version")
    assert version.stdout == f"atss_d2 {atss_d2.__version__}\n"


@pytest.mark.parametrize(
    ("door", "command"),
    [
        ("train_net.py", "train"),
        ("tools/demo.py", "predict"),
        ("tools/export_model.py", "export"),
        ("tools/predict_exported.py", "predict-exported"),
        ("tools/convert_weights.py", "convert-weights"),
        ("tools/start_project.py", "start-project"),
        ("tools/check_dataset.py", "check-dataset"),
    ],
)
def test_doors_open_the_same_commands(door, command):
    process = python(door, "--help")
    assert process.returncode == 0, process.stderr
    expected = python("-m", "atss_d2_cli", command, "--help").stdout

    def body(text):  # without the usage, which is wrapped by the length of the name
        return text[text.index("\n\n") :]

    assert body(process.stdout) == body(expected)


def test_the_package_is_whole_after_a_command_was_started_alone():
    code = (
        "import sys, atss_d2_cli\n"
        "module = atss_d2_cli._import('commands.train')\n"
        "assert 'atss_d2' not in sys.modules\n"
        "import atss_d2\n"
        "from atss_d2.commands import train\n"
        "print(train is module, atss_d2.ATSS.__name__)\n"
    )
    assert python("-W", "ignore", "-c", code).stdout == "True ATSS\n"


def test_errors_of_workers_are_one_sentence():
    error = ValueError(
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "a.py", line 3, in f\n    raise ValueError("x")\n'
        "ValueError: image 'a.jpg':\ncannot be read\n"
    )
    assert one_sentence(error) == "image 'a.jpg': cannot be read"
    assert one_sentence(KeyError("no key 'a'")) == "no key 'a'"
    assert one_sentence(ValueError()) == "ValueError()"


@pytest.mark.parametrize(
    ("command", "argv", "says"),
    [
        ("start-project", [], "interrupted\n"),
        ("train", ["--eval-only"], "interrupted\n"),
        ("train", [], "interrupted; with --resume, the same command continues from the last "),
    ],
)
def test_an_interrupt_is_one_line(monkeypatch, capsys, command, argv, says):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(atss_d2_cli, "_import", lambda name: types.SimpleNamespace(main=interrupt))
    assert atss_d2_cli.run(command, argv) == 130
    assert capsys.readouterr().err.startswith(says)
