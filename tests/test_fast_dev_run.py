"""Commands that try a training, and that start one from the weights of another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import toy

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def train(tmp_path, toy_data):
    """Runs train_net.py on the toy config in a fresh folder."""
    toy.write_config(tmp_path / "config.py", tmp_path / "output")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "train_net.py"), "--config-file", "config.py", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )

    return run


def test_a_dev_run_leaves_the_real_run_alone(tmp_path, train):
    overrides = ["train.fast_dev_run=4", "train.validation_loss.enabled=true"]
    overrides += ["train.early_stopping.enabled=true", "train.report.enabled=true"]
    (tmp_path / "output").mkdir()
    (tmp_path / "output/model_final.pth").write_text("of the real run")
    for _ in range(2):  # the second one is not stopped by what the first has left
        result = train("--resume", *overrides)
        assert result.returncode == 0, result.stderr
        assert (
            "4 iterations, checkpoints (1 MB, removed) and evaluations went well" in result.stdout
        )
    folder = tmp_path / "output_fast_dev_run"
    assert [x.name for x in (tmp_path / "output").iterdir()] == ["model_final.pth"]
    assert not list(folder.rglob("*.pth")) or {x.parent.name for x in folder.rglob("*.pth")} == {
        "inference"
    }
    metrics = toy.read_metrics(folder)
    assert list(metrics)[:4] == [0, 1, 2, 3]
    assert {"bbox/AP", "validation/total", "total_loss"} <= metrics[1].keys()
    assert (folder / "learning_curve.png").is_file()


def test_warm_restart(tmp_path, train):
    """The averaged weights of a run, with a fresh optimizer and schedule."""
    short = ["train.max_iter=2", "train.eval_period=0", "train.ema.enabled=true"]
    assert train(*short).returncode == 0
    first = tmp_path / "output/model_final.pth"
    options = [f"train.init_checkpoint={first}", "train.output_dir=again", "optimizer.lr=0"]
    result = train(*short, *options)
    assert result.returncode == 0, result.stderr
    before, after = torch.load(first), torch.load(tmp_path / "again/model_final.pth")
    for name, weight in after["trained_model"].items():
        if not name.startswith("backbone.norm."):  # statistics go on
            assert torch.equal(weight, before["model"][name])
    assert after["iteration"] == 1
    assert len(toy.read_metrics(tmp_path / "again")) == 3
