"""Options that several processes must agree on, as a person runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import toy

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "train.max_iter": 4,
    "train.eval_period": 2,
    "train.checkpointer.period": 2,
    "train.validation_loss.enabled": True,
    "train.activation_checkpointing.enabled": True,
}


@pytest.mark.usefixtures("toy_data")
def test_two_processes_are_one(tmp_path):
    """With SyncBN, whose statistics are those of the whole batch, and a sharded optimizer."""
    if torch.cuda.is_available():
        pytest.skip("as many processes as GPUs; this compares on the CPU")
    config = toy.write_config(tmp_path / "config.py", tmp_path / "output")
    stopping = {"metric": "validation/total", "mode": "min", "patience": 1, "min_delta": 1000.0}
    command_line = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config)]
    overrides = [f"{key}={json.dumps(value)}" for key, value in OPTIONS.items()]
    overrides += [f"train.early_stopping.{key}={value}" for key, value in stopping.items()]
    overrides += ["train.max_iter=8", "train.early_stopping.enabled=true"]
    overrides += ["train.shard_optimizer=true", "model.backbone.norm=naiveSyncBN"]
    result = subprocess.run(
        [*command_line, "--num-gpus", "2", *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "Stopped early after iteration 3: validation/total has not improved" in result.stdout
    (tmp_path / "one").mkdir()
    one = toy.Run(tmp_path / "one", **OPTIONS)
    # A schedule depends on max_iter.
    one.cfg.train.max_iter = 8
    one.train(fail_at=4)
    found = torch.load(tmp_path / "output/model_final.pth")
    expected = one.checkpoint("model_0000003")
    close = {"rtol": 1e-4, "atol": 1e-5}
    weights, variance = found["model"], "backbone.norm.running_var"
    del weights["backbone.norm.num_batches_tracked"]  # Detectron2's SyncBN does not count
    # It divides by n, torch's BatchNorm by n - 1.
    torch.testing.assert_close(
        weights.pop(variance), expected["model"][variance], rtol=3e-3, atol=0
    )
    for name, value in weights.items():
        torch.testing.assert_close(value, expected["model"][name], **close)
    ours, theirs = (x["trainer"]["optimizer"] for x in (found, expected))
    torch.testing.assert_close(ours["state"], theirs["state"], **close)
    metrics = toy.read_metrics(tmp_path / "output")
    for name, rel in (("total_loss", 1e-4), ("validation/total", 3e-3)):
        assert metrics[3][name] == pytest.approx(one.metrics[3][name], rel=rel)
    # One process continues what two have saved.
    run = toy.Run(tmp_path, **OPTIONS, **{"train.shard_optimizer": True})
    run.cfg.train.max_iter = 6
    run.train(resume=True)
    assert min(run.seen) == 4
    assert run.checkpoint()["iteration"] == 5
