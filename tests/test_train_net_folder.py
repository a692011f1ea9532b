"""Runs that are killed while they write, and what a person may type next, as they type it."""

import functools
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import toy

ROOT = Path(__file__).resolve().parent.parent


class Command:
    """``python train_net.py`` or a script for yaml, on the toy data, in a folder of its own."""

    def __init__(self, folder: Path, *, kind: str) -> None:
        self.output_dir = folder / "output"
        if kind == "yaml":
            self.script, self.config_file = toy.write_yaml_script(folder, self.output_dir)
        else:
            self.script = ROOT / "train_net.py"
            self.config_file = toy.write_config(folder / "config.py", self.output_dir)
        self.final = self.output_dir / "model_final.pth"

    def __call__(self, *flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, self.script, "--config-file", self.config_file, *flags]
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path} | environment,
        )

    def leftovers(self) -> list[Path]:
        return [path for path in self.output_dir.glob(".*") if path.name != ".lock"]


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize(
    ("kind", "last"), [("lazy", "model_0000011.pth"), ("yaml", "model_0000005.pth")]
)
def test_killed_while_the_final_checkpoint_is_written(tmp_path, kind, last):
    command = Command(tmp_path, kind=kind)
    process = command(TOY_KILL_WRITING="model_final.pth")
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not command.final.exists()
    assert len(command.leftovers()) == 1
    (command.output_dir / "last_checkpoint").write_bytes(b"")  # as other writers leave it

    process = command("--resume")
    assert process.returncode == 0, process.stderr
    assert command.final.read_bytes() == (command.output_dir / last).read_bytes()
    assert (command.output_dir / "last_checkpoint").read_text() == "model_final.pth"
    assert command.leftovers() == []
    end = torch.load(command.final)["iteration"] + 1
    assert "bbox/AP" in toy.read_metrics(command.output_dir)[end]
    output = process.stdout + process.stderr
    assert "last_checkpoint' is empty: taking" in output
    assert f"All {end} iterations are done; the evaluation after the last one is not" in output

    if kind == "yaml":
        return
    process = command()
    assert process.returncode == 1
    assert process.stderr.startswith(f"train_net.py: '{command.output_dir}' holds a run (model_f")
    assert process.stderr.count("\n") == 1
    assert "--overwrite" in process.stderr


@pytest.mark.usefixtures("toy_data")
def test_a_full_disk_is_one_sentence(tmp_path):
    """TensorBoard's thread showed a traceback beside it."""
    config_file = toy.write_config(tmp_path / "config.py", tmp_path / "output")
    command = [sys.executable, ROOT / "train_net.py", "--config-file", config_file]
    own = ["train.max_iter=400", "train.eval_period=0", "train.checkpointer.period=400"]
    # The file of TensorBoard, which grows fastest, gets no more than this.
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20000, 20000))
    process = subprocess.run([*command, *own], capture_output=True, text=True, preexec_fn=limit)
    assert process.returncode == 1
    assert process.stderr.startswith(f"train_net.py: cannot write to '{tmp_path / 'output'}")
    assert process.stderr.endswith(": make room for it, and continue by --resume\n")
    assert process.stderr.count("\n") == 1
    (events,) = tmp_path.glob("output/events.*")
    assert events.stat().st_size == 20000
