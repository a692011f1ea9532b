"""What a resumed run does with the files of its folder."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.engine import HookBase

from atss_d2.checkpoint import CheckpointError, load_file
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

SHORT = {"train.max_iter": 6, "train.checkpointer.period": 2, "train.eval_period": 4}


@pytest.fixture
def finished(tmp_path, whole_runs) -> toy.Run:
    """A copy of a finished run; resuming it from there must find nothing that differs."""
    run = toy.Run(tmp_path, **SHORT)
    shutil.copytree(whole_runs(**SHORT).output_dir, run.output_dir)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_resuming_a_finished_run_changes_nothing(finished, whole_runs, caplog):
    caplog.set_level("INFO", "atss_d2")
    before = contents(finished.output_dir)
    finished.train(resume=True)
    assert contents(finished.output_dir) == before
    expected = whole_runs(**SHORT).results["bbox"]
    assert finished.results["bbox"] == pytest.approx(expected, nan_ok=True)
    assert "is finished: 6 iterations are done, train.max_iter is 6" in caplog.text


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_run_killed_at_its_end_gets_its_final_checkpoint(finished, damage):
    before = contents(finished.output_dir)
    damage(finished.output_dir / "model_final.pth")
    (finished.output_dir / "last_checkpoint").write_text("model_0000005.pth")
    finished.train(resume=True)
    assert contents(finished.output_dir) == before


def test_a_run_killed_in_its_last_evaluation_is_evaluated(finished, whole_runs):
    before = contents(finished.output_dir)
    metrics = finished.output_dir / "metrics.json"
    *lines, last = metrics.read_text().splitlines()
    assert '"iteration": 6' in last
    metrics.write_text("\n".join([*lines, ""]))
    finished.train(resume=True)
    expected = whole_runs(**SHORT).results["bbox"]
    assert finished.results["bbox"] == pytest.approx(expected, nan_ok=True)
    for name in ("model_final.pth", "model_0000005.pth", "last_checkpoint"):
        assert contents(finished.output_dir)[name] == before[name]
    assert '"iteration": 6' in metrics.read_text().splitlines()[-1]


def test_a_prolonged_run_keeps_its_last_checkpoint(tmp_path):
    run = toy.Run(tmp_path, **{**SHORT, "train.max_iter": 3}).train()
    final = dict(load_file(run.output_dir / "model_final.pth")["model"])
    assert not (run.output_dir / "model_0000002.pth").exists()
    run.cfg.train.max_iter = 6
    run.train(resume=True, fail_at=3)
    for name in ("model_0000002", "model_final"):
        kept = dict(run.checkpoint(name)["model"])
        torch.testing.assert_close(kept, final, rtol=0, atol=0)
    run.train(resume=True)
    kept = dict(run.checkpoint("model_0000002")["model"])
    torch.testing.assert_close(kept, final, rtol=0, atol=0)
    assert run.checkpoint()["iteration"] == 5
    assert (run.output_dir / "last_checkpoint").read_text() == "model_final.pth"


def test_max_to_keep_holds_across_resumes(tmp_path):
    overrides = {"train.max_iter": 8, "train.checkpointer": {"period": 1, "max_to_keep": 2}}
    run = toy.Run(tmp_path, **overrides, **{"train.eval_period": 0})
    run.output_dir.mkdir()
    torch.save({"model": {}}, run.output_dir / "model_0000000.pth")  # somebody's weights
    for fail_at in (3, 5):
        run.train(resume=fail_at > 3, fail_at=fail_at)
        if fail_at == 3:
            foreign = run.output_dir / "previous_1" / "model_0000000.pth"
            shutil.copy(foreign, run.output_dir / "model_0000000.pth")
        numbered = sorted(path.name for path in run.output_dir.glob("model_0*.pth"))
        expected = [0, fail_at - 2, fail_at - 1]
        assert numbered == [f"model_{i:07d}.pth" for i in expected]
    run.train(resume=True)
    numbered = sorted(path.name for path in run.output_dir.glob("model_0*.pth"))
    assert numbered == [f"model_{i:07d}.pth" for i in (0, 6, 7)]


def test_a_new_run_does_not_resume_from_an_older_one(tmp_path, whole_runs):
    run = toy.Run(tmp_path, **SHORT)
    shutil.copytree(whole_runs(**SHORT).output_dir, run.output_dir)
    run.train(fail_at=3)
    assert (run.output_dir / "previous_1" / "model_final.pth").is_file()
    run.forget().train(resume=True)
    assert min(run.seen) == 2


class Poison(HookBase):
    """Spoils a weight after the step of iteration 2."""

    def after_step(self) -> None:
        if self.trainer.iter == 2:
            with torch.no_grad():
                next(self.trainer.model.parameters())[0] = torch.nan


def test_the_end_of_a_run_with_nan_is_an_error(tmp_path):
    run = toy.Run(tmp_path, **{**SHORT, "train.max_iter": 3, "train.hooks": [L(Poison)()]})
    with pytest.raises(CheckpointError, match=r"after the last iteration .*model_final.pth is not"):
        run.train()
    assert [path.name for path in run.output_dir.glob("*.pth")] == ["model_0000001.pth"]
    run.cfg.train.hooks = []
    assert list(run.forget().train(resume=True).seen) == [2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.backbone.norm": "GN"}, "which is of another model: the model lacks backbone.norm"),
        (
            {"optimizer": {"_target_": "torch.optim.AdamW", "momentum": "???"}},
            "another kind of (training|optimizer)",  # depends on torch
        ),
        (
            {"optimizer.params": {"_target_": "tests.engine.test_resuming.one_group"}},
            r"training cannot go on with this optimizer \(loaded state dict .* parameter groups\)",
        ),
    ],
    ids=["model", "optimizer", "groups"],
)
def test_another_training_is_refused_in_one_sentence(finished, overrides, message):
    finished.cfg = toy.config(finished.output_dir, **{**SHORT, "train.max_iter": 8}, **overrides)
    if "optimizer" in overrides:
        del finished.cfg.optimizer.momentum
    before = contents(finished.output_dir)
    with pytest.raises(CheckpointError, match=message):
        finished.train(resume=True)
    assert {name: contents(finished.output_dir)[name] for name in before} == before


def one_group(model: torch.nn.Module, **_: object) -> list[torch.nn.Parameter]:
    """Parameters without groups for norms and biases."""
    return [p for p in model.parameters() if p.requires_grad]


def test_another_batch_size_and_precision_go_on(finished):
    amp = {"enabled": True, "dtype": "bfloat16", "inference": False}
    overrides = {"dataloader.train.total_batch_size": 4, "train.amp": amp}
    finished.cfg = toy.config(finished.output_dir, **{**SHORT, "train.max_iter": 7}, **overrides)
    assert list(finished.forget().train(resume=True).seen) == [6]
    finished.cfg = toy.config(finished.output_dir, **{**SHORT, "train.max_iter": 8})
    assert list(finished.forget().train(resume=True).seen) == [7]
    assert finished.checkpoint()["iteration"] == 7
