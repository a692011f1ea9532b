"""DDOD's counters of positives in a training: interrupted, skipped, averaged, on two processes."""

import functools

import pytest
import torch
from detectron2.engine import launch

from atss_d2.engine import leave_process_group
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

COUNTER = "criterion.num_positives"
OVERRIDES = {
    "model.matcher._target_": "atss_d2.modeling.DDODMatcher",
    "model.criterion": {"_target_": "atss_d2.modeling.DDODCriterion", "num_levels": 2},
    "model.head.deform_first_conv": True,
    "model.backbone.norm": "FrozenBN",  # no statistics of a process's images
    "train.max_iter": 5,
    "train.checkpointer.period": 2,
    "train.eval_period": 0,
    "train.ema": {"enabled": True, "decay": 0.9},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy_data) -> toy.Run:
    return toy.Run(tmp_path_factory.mktemp("whole"), **OVERRIDES).train()


def test_the_average_has_the_counters_of_the_training(whole):
    checkpoint = whole.checkpoint()
    counts = checkpoint["model"][COUNTER]
    assert counts.dtype == torch.int64
    assert (counts.sum(dim=1) > whole.cfg.train.max_iter).all()
    assert torch.equal(counts, checkpoint["trained_model"][COUNTER])


def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(tmp_path, whole):
    run = toy.Run(tmp_path, **OVERRIDES)
    toy.in_killed_process(run.train, TOY_KILL_AT=3)
    before = run.checkpoint("model_0000001")["model"][COUNTER]
    assert before.any()
    run.train(resume=True, seed=1)
    toy.assert_equal(run.checkpoint(), whole.checkpoint())
    assert not torch.equal(run.checkpoint()["model"][COUNTER], before)


def test_validation_losses_do_not_count(tmp_path, whole):
    options = {"train.validation_loss.enabled": True, "train.eval_period": 2}
    run = toy.Run(tmp_path, **{**OVERRIDES, **options}).train()
    assert any(key.startswith("validation") for key in run.metrics[2] | run.metrics[1])
    for part in ("model", "trained_model"):
        torch.testing.assert_close(run.checkpoint()[part], whole.checkpoint()[part])


def test_skipped_steps_do_not_count(tmp_path, monkeypatch):
    counts = []
    monkeypatch.setenv("TOY_NAN_AT", "1")
    for max_iter in (1, 2):
        (tmp_path / str(max_iter)).mkdir()
        options = {"train.max_iter": max_iter, "train.nonfinite": {"max_skips": 1}}
        run = toy.Run(tmp_path / str(max_iter), **{**OVERRIDES, **options}).train()
        counts.append(run.checkpoint()["trained_model"][COUNTER])
    assert counts[0].any()
    assert torch.equal(*counts)


def train_one_of_two(folder):
    torch.set_num_threads(1)
    options = {"dataloader.train.total_batch_size": 4, "train.max_iter": 3}
    toy.Run(folder / "two", **{**OVERRIDES, **options}).train()
    leave_process_group()


def test_one_process_trains_as_two(tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("Detectron2's launch gives every process a GPU; this compares on the CPU")
    # Copies of this process do not import everything again.
    forked = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    monkeypatch.setattr(torch.multiprocessing, "start_processes", forked)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    launch(train_one_of_two, 2, dist_url="auto", args=(tmp_path,))
    options = {"dataloader.train.total_batch_size": 4, "train.max_iter": 3}
    run = toy.Run(tmp_path / "one", **{**OVERRIDES, **options}).train()
    two = toy.Run(tmp_path / "two", **{**OVERRIDES, **options})
    states = [x.checkpoint()["model"] for x in (run, two)]
    assert torch.equal(*(state[COUNTER] for state in states))
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)
