"""Interrupted training runs of a toy detector go on as if nothing had happened."""

import pytest
import torch

from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

MAX_ITER = 6
SHORT = {"train.max_iter": MAX_ITER, "train.checkpointer.period": 2, "train.eval_period": 4}
FAIL_AT = 3  # after the checkpoint of iteration 1, before that of iteration 3 is written
EMA = {**SHORT, "train.ema": {"enabled": True, "decay": 0.9}}
RANDOM = {**EMA, "is_augmented": True, "model._target_": "tests.toy.NoisyATSS"}
DRAWN_SEED = {**RANDOM, "train.seed": -1}
UNGROUPED = {**SHORT, "dataloader.train.aspect_ratio_grouping": False}


@pytest.mark.parametrize(
    "overrides",
    [SHORT, {**UNGROUPED, "dataloader.train.num_workers": 2}, RANDOM, DRAWN_SEED],
    ids=["grouped", "any-order-2-workers", "random", "drawn-seed"],
)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, whole_runs, overrides):
    same = {k: v for k, v in overrides.items() if k != "dataloader.train.num_workers"}
    whole = whole_runs(**same)
    run = toy.Run(tmp_path, **overrides).train(fail_at=FAIL_AT)
    assert (run.output_dir / "last_checkpoint").read_text() == "model_0000001.pth"
    # Another seed: what was random in the first part is in the checkpoint. And other workers.
    run.cfg.dataloader.train.num_workers = 2 - run.cfg.dataloader.train.num_workers
    run.forget().train(resume=True, seed=1)
    assert run.seen == {i: whole.seen[i] for i in range(2, MAX_ITER)}
    assert run.rates() == whole.rates()
    for name in (f"model_{MAX_ITER - 1:07d}", "model_final"):
        toy.assert_equal(run.checkpoint(name), whole.checkpoint(name))
    assert run.results["bbox"] == pytest.approx(whole.results["bbox"], nan_ok=True, rel=0, abs=0)


def test_a_half_written_checkpoint_does_no_harm(tmp_path, whole_runs):
    run = toy.Run(tmp_path, **SHORT).train(fail_at=FAIL_AT)
    whole_file = whole_runs(**SHORT).output_dir / "model_0000003.pth"
    (run.output_dir / "model_0000003.pth").write_bytes(whole_file.read_bytes()[:1000])
    run.forget().train(resume=True)
    assert min(run.seen) == 2
    torch.testing.assert_close(
        run.checkpoint("model_0000003")["model"],
        whole_runs(**SHORT).checkpoint("model_0000003")["model"],
    )


def test_without_resume_or_a_checkpoint_a_run_starts_at_zero(tmp_path, whole_runs):
    run = toy.Run(tmp_path, **SHORT).train(resume=True, fail_at=FAIL_AT)
    assert run.seen == {i: x for i, x in whole_runs(**SHORT).seen.items() if i <= FAIL_AT}
    run.forget().train()
    assert run.seen == whole_runs(**SHORT).seen
    assert run.rates() == whole_runs(**SHORT).rates()


def test_resuming_after_the_end(tmp_path):
    run = toy.Run(tmp_path, **{**EMA, "train.max_iter": 2}).train()
    results = run.results
    before = {path: path.read_bytes() for path in run.output_dir.glob("*.pth")}
    run.forget().train(resume=True)
    assert run.seen == {}
    assert {path: path.read_bytes() for path in run.output_dir.glob("*.pth")} == before
    assert (run.output_dir / "last_checkpoint").read_text() == "model_final.pth"
    assert run.results["bbox"] == pytest.approx(results["bbox"], nan_ok=True)

    run.cfg.train.max_iter = 4  # a longer run goes on
    run.train(resume=True)
    assert list(run.seen) == [2, 3]
    assert run.checkpoint()["iteration"] == 3
    run.cfg.train.max_iter = 1  # a shorter one is over
    run.forget().train(resume=True)
    assert run.seen == {}
    assert run.checkpoint()["iteration"] == 3


def test_a_missing_initial_checkpoint_is_named(tmp_path):
    run = toy.Run(tmp_path, **{"train.init_checkpoint": "nowhere/R-50.pkl"})
    with pytest.raises(FileNotFoundError, match="no checkpoint at .nowhere/R-50"):
        run.train()
    run.cfg.train.init_checkpoint = ""
    run.cfg.train.max_iter = 1
    run.train()
    run.cfg.train.init_checkpoint = "nowhere/R-50.pkl"
    run.train(resume=True)  # which needs it no more


@pytest.mark.parametrize(("first", "then"), [(SHORT, EMA), (EMA, SHORT)], ids=["on", "off"])
def test_the_average_may_be_switched_when_a_run_is_resumed(tmp_path, first, then, whole_runs):
    run = toy.Run(tmp_path, **first).train(fail_at=FAIL_AT)
    run.cfg = toy.config(run.output_dir, **then)
    run.forget().train(resume=True)
    assert list(run.seen) == list(range(2, MAX_ITER))
    assert ("trained_model" in run.checkpoint()) == (then is EMA)
    if then is EMA:  # training itself goes on as without the average
        expected = whole_runs(**SHORT).checkpoint()["model"]
        torch.testing.assert_close(run.checkpoint()["trained_model"], expected)
