"""Losses and gradients that are not finite change no weight, and stop a run with a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from torch import nn

from atss_d2.checkpoint import CheckpointError
from atss_d2.commands import replay as command
from atss_d2.config import load_config
from atss_d2.engine import NonFiniteError, Trainer, replay
from atss_d2.engine.nonfinite import likely_causes
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

ROOT = Path(__file__).resolve().parents[2]
# The toy backbone has BatchNorm: running statistics count as well.
SAVED = {
    "train.max_iter": 5,
    "train.checkpointer.period": 1,
    "train.eval_period": 0,
    "train.ema": {"enabled": True, "decay": 0.9},
}
KINDS = {"loss": "TOY_NAN_AT", "gradient": "TOY_NAN_GRADIENT_AT"}


def states(checkpoint: dict) -> list:
    trainer = checkpoint["trainer"]
    return [
        checkpoint["model"],
        checkpoint["trained_model"],
        trainer["optimizer"]["state"],
        trainer["hooks"]["EMAHook"],
    ]


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stops_before_its_weights_change(tmp_path, monkeypatch, kind):
    monkeypatch.setenv(KINDS[kind], "2")
    run = toy.Run(tmp_path, **SAVED)
    with pytest.raises(NonFiniteError) as error:
        run.train()
    message = str(error.value)
    what = {"loss": "loss_cls is nan", "gradient": "the norm of the gradient is inf"}[kind]
    assert message.startswith(f"{what} in iteration 2 (lr 0.0")
    for name in run.seen[2]:
        assert name in message
    assert ("while the losses are finite" in message) == (kind == "gradient")
    assert "lower learning rate" in message
    assert sorted(path.name for path in run.output_dir.glob("*.pth")) == [
        "model_0000000.pth",
        "model_0000001.pth",
    ]
    folder = run.output_dir / "nonfinite_0000002"
    assert f"tools/replay.py {folder}" in message
    kept, before = torch.load(folder / "state.pth"), run.checkpoint("model_0000001")
    assert_equal(kept["model"], before["trained_model"])
    assert_equal(kept["optimizer"]["state"], before["trainer"]["optimizer"]["state"])
    # The resumed run is the one in which it did not happen.
    monkeypatch.delenv(KINDS[kind])
    run.train(resume=True)
    (tmp_path / "whole").mkdir()
    whole = toy.Run(tmp_path / "whole", **SAVED).train()
    assert_equal(states(run.checkpoint()), states(whole.checkpoint()))


@pytest.mark.parametrize("kind", KINDS)
def test_skipped_steps_change_nothing(tmp_path, monkeypatch, kind, caplog):
    monkeypatch.setenv(KINDS[kind], "1,2,4")
    run = toy.Run(tmp_path, **SAVED, **{"train.nonfinite": {"max_skips": 2}}).train()
    saved = [run.checkpoint(f"model_{i:07d}") for i in range(5)]
    for first, second in ((0, 1), (1, 2), (3, 4)):
        assert_equal(states(saved[first]), states(saved[second]))
    assert (
        saved[2]["model"]["backbone.conv.weight"] != saved[3]["model"]["backbone.conv.weight"]
    ).any()
    warnings = [x.getMessage() for x in caplog.records if "is skipped" in x.getMessage()]
    assert [x.rpartition("skipped, ")[2] for x in warnings] == [
        "1 of at most 2 in a row",
        "2 of at most 2 in a row",
        "1 of at most 2 in a row",
    ]
    assert "total_loss" not in run.metrics.get(2, {})


def test_too_many_skips_in_a_row(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_NAN_AT", "0,2,3")
    run = toy.Run(tmp_path, **SAVED, **{"train.nonfinite": {"max_skips": 1}})
    with pytest.raises(NonFiniteError, match="in iteration 3"):
        run.train()


def test_two_processes_and_a_replay(tmp_path, toy_data, capsys):
    """As a person runs it; only one process has a loss that is not finite."""
    config = toy.write_config(tmp_path / "config.py", tmp_path / "output")
    command_line = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config)]
    result = subprocess.run(
        [*command_line, "--num-gpus", "2", "train.eval_period=0"],
        env={**os.environ, "TOY_NAN_AT": "1", "TOY_NAN_RANK": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr + result.stdout
    (sentence,) = [x for x in result.stderr.splitlines() if "train_net.py: loss_cls is nan" in x]
    assert "in iteration 1" in sentence
    assert "process 1; images: " in sentence
    folder = tmp_path / "output/nonfinite_0000001"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "rank0.pth",
        "rank1.pth",
        "state.pth",
    ]
    assert command.main([str(folder), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("everything is finite here") == 2  # without TOY_NAN_AT


def test_a_replay_finds_the_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOY_NAN_AT", "0")
    run = toy.Run(tmp_path, **SAVED)
    with pytest.raises(NonFiniteError):
        run.train()
    folder = run.output_dir / "nonfinite_0000000"
    state = torch.load(folder / "state.pth")
    state["model"]["head.bbox_subnet.0.weight"][0, 0] = torch.inf
    torch.save(state, folder / "state.pth")
    monkeypatch.delenv("TOY_NAN_AT")
    (step,) = replay(folder, device="cpu")
    assert step.output == "head.bbox_subnet.0"
    assert "1 weights were not finite before this step" in step.causes[0]
    command.main([str(folder), "--dtype", "bfloat16"])
    assert "first output that is not finite: of head.bbox_subnet.0" in capsys.readouterr().out


def test_a_replay_repeats_the_losses(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOY_NAN_GRADIENT_AT", "1")
    run = toy.Run(tmp_path, **{"train.max_iter": 3, "train.eval_period": 0})
    with pytest.raises(NonFiniteError):
        run.train()
    folder = run.output_dir / "nonfinite_0000001"
    assert command.main([str(folder), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "Iteration 1, process 0: toy_train_" in printed
    monkeypatch.delenv("TOY_NAN_GRADIENT_AT")
    (step,) = replay(folder, device="cpu")
    assert step.losses == step.run_losses
    assert step.run_norm == float("inf") > step.norm
    assert (step.output, step.gradient, step.parameters) == (None, None, [])
    (folder / "rank0.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"rank0\.pth"):
        replay(folder)
    with pytest.raises(CheckpointError, match="is not the folder of a step"):
        replay(tmp_path)


def test_yaml(tmp_path, monkeypatch):
    (tmp_path / "toy.yaml").write_text(toy.yaml_config(tmp_path / "output"))
    cfg = load_config(tmp_path / "toy.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "SOLVER.CHECKPOINT_PERIOD", 1])
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.model.head.cls_score.register_forward_hook(
        lambda *args: args[2] * (float("nan") if trainer.iter == 2 else 1)
    )
    with pytest.raises(NonFiniteError, match=r"loss_cls is nan in iteration 2 .*toy_train_\d"):
        trainer.train()
    (step,) = replay(tmp_path / "output/nonfinite_0000002", device="cpu")
    assert step.causes == []  # without the hook
    before = torch.load(tmp_path / "output/model_0000001.pth")["model"]
    assert_equal(torch.load(tmp_path / "output/nonfinite_0000002/state.pth")["model"], before)


def image(boxes, value=1.0) -> dict:
    instances = Instances((4, 4))
    instances.gt_boxes = Boxes(torch.tensor(boxes))
    return {"file_name": "a.png", "image": torch.full((3, 4, 4), value), "instances": instances}


@pytest.mark.parametrize(
    ("model", "batch", "cause"),
    [
        (nn.Sequential(FrozenBatchNorm2d(3)), [], "1 frozen norms have no statistics"),
        (nn.ReLU(), [image([[0.0, 0, 1, float("nan")]])], "'a.png' has boxes that are not finite"),
        (nn.ReLU(), [image([[0.0, 0, 1, 0]])], "'a.png' has boxes without area"),
        (nn.ReLU(), [image([[0.0, 0, 1, 1]], torch.inf)], "'a.png' has pixels that are not finite"),
        (nn.ReLU(), [image([[0.0, 0, 1, 1]])], "usually a lower learning rate"),
    ],
)
def test_likely_causes(model, batch, cause):
    assert likely_causes(model, batch, None)[0].startswith(cause)


def test_float16_is_a_cause():
    assert "overflows" in likely_causes(nn.ReLU(), [], torch.float16)[0]
