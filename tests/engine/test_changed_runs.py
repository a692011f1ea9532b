"""Runs that are resumed with another batch size, and other rare states."""

import itertools

import pytest
import torch
from torch import nn

from atss_d2.config import ConfigError
from atss_d2.engine import determinism
from atss_d2.engine import trainer as engine_trainer
from atss_d2.engine.amp import GradScaler
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

SHORT = {"train.max_iter": 4, "train.checkpointer.period": 2, "train.eval_period": 0}
UNGROUPED = {**SHORT, "dataloader.train.aspect_ratio_grouping": False}


def order(run) -> list[str]:
    return list(itertools.chain(*run.seen.values()))


@pytest.mark.parametrize("size", [1, 4, 3])
def test_with_another_batch_size_the_order_goes_on(tmp_path, whole_runs, size, caplog):
    expected = order(whole_runs(**{**UNGROUPED, "train.max_iter": 10}))
    run = toy.Run(tmp_path, **UNGROUPED).train(fail_at=2)
    run.cfg.dataloader.train.total_batch_size = size
    caplog.clear()
    run.forget().train(resume=True)
    start = 4 // size * size  # 2 iterations of 2 images
    assert order(run) == expected[start : start + 2 * size]
    again = "; 1 of them are used again" if size == 3 else ""
    assert f"was 2 and is {size}: the order of images goes on behind the 4 " in caplog.text
    assert f"images that were seen{again}. Learning" in caplog.text
    run.cfg.train.max_iter = 6  # the first part is remembered
    caplog.clear()
    run.forget().train(resume=True)
    start += 2 * size
    assert order(run) == expected[start : start + 2 * size]
    assert "images that were seen" not in caplog.text


@pytest.mark.parametrize("sampler", ["RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"])
def test_samplers_of_yaml_continue_with_a_drawn_seed(tmp_path, sampler):
    own = ["SEED", -1, "DATALOADER.SAMPLER_TRAIN", sampler, "TEST.EVAL_PERIOD", 0]
    whole = toy.YamlRun(tmp_path / "whole", *own)
    run = toy.YamlRun(tmp_path / "resumed", *own)
    for cfg in (whole.cfg, run.cfg):
        cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.7
    whole.train()
    run.train(fail_at=4)
    run.train(resume=True, seed=1)
    seen = [toy.seen_images(r.folder / "seen") for r in (run, whole)]
    assert seen[0] == seen[1]
    toy.assert_equal(run.checkpoint(), whole.checkpoint())


# train.deterministic


@pytest.fixture
def restored_flags(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", cudnn.deterministic)
    monkeypatch.setattr(cudnn, "benchmark", True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", ["lazy", "yaml"])
def test_deterministic_algorithms(tmp_path, restored_flags, monkeypatch, kind):
    if kind == "lazy":
        run = toy.Run(tmp_path, **{**SHORT, "train.max_iter": 1, "train.deterministic": True})
    else:
        own = ["MODEL.ATSS.TRAIN.DETERMINISTIC", True, "SOLVER.MAX_ITER", 1]
        run = toy.YamlRun(tmp_path, *own)
    run.train()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert determinism.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark


def test_values_of_deterministic(tmp_path, restored_flags):
    determinism.use_determinism(toy.config(tmp_path))
    assert not torch.are_deterministic_algorithms_enabled()  # off by default
    determinism.use_determinism(toy.config(tmp_path, **{"train.deterministic": "warn"}))
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    with pytest.raises(ConfigError, match=r"train\.deterministic must be .*, got 'yes'"):
        determinism.use_determinism(toy.config(tmp_path, **{"train.deterministic": "yes"}))


class DeformConv(nn.Conv2d):
    """On a device that is not a CPU."""

    def __init__(self) -> None:
        super().__init__(1, 1, 1, device="meta")


def test_deformable_convolutions_are_not_deterministic_on_a_gpu(tmp_path):
    cfg = toy.config(tmp_path, **{"train.deterministic": True})
    with pytest.raises(ConfigError, match="gradient of deformable convolutions"):
        determinism.check_determinism(cfg, DeformConv())
    determinism.check_determinism(cfg, nn.Conv2d(1, 1, 1, device="meta"))
    cfg.train.deterministic = "warn"
    determinism.check_determinism(cfg, DeformConv())


# States that only a GPU has


def test_the_gradient_scaler_continues(tmp_path, monkeypatch):
    def build_trainer(*arguments):
        trainer = build(*arguments)
        trainer.grad_scaler = GradScaler("cpu", init_scale=8.0, growth_interval=2)
        return trainer

    build = engine_trainer._build_trainer
    monkeypatch.setattr(engine_trainer, "_build_trainer", build_trainer)
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    overrides = {**SHORT, "train.max_iter": 6}
    whole = toy.Run(tmp_path / "whole", **overrides).train()
    run = toy.Run(tmp_path / "resumed", **overrides).train(fail_at=3)  # after 2 of 2 steps
    scaler = run.checkpoint("model_0000001")["trainer"]["grad_scaler"]
    assert scaler["scale"] == 16.0
    run.train(resume=True)
    assert run.checkpoint()["trainer"]["grad_scaler"]["scale"] == 64.0
    toy.assert_equal(run.checkpoint(), whole.checkpoint())
