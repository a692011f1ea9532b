"""Interrupted training runs of a toy detector go on as if nothing had happened."""

import pytest
import torch

from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

MAX_ITER = 12
FAIL_AT = 7  # after the checkpoint of iteration 3, before that of iteration 7 is written
EMA = {"train.ema": {"enabled": True, "decay": 0.9}}
UNGROUPED = {"dataloader.train.aspect_ratio_grouping": False}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"dataloader.train.num_workers": 2},
        UNGROUPED,
        {**UNGROUPED, "dataloader.train.num_workers": 2},
        EMA,
    ],
    ids=["grouped", "grouped-2-workers", "any-order", "any-order-2-workers", "ema"],
)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, whole_runs, overrides):
    same_order = {k: v for k, v in overrides.items() if k != "dataloader.train.num_workers"}
    whole = whole_runs(**same_order)
    run = toy.Run(tmp_path, **overrides).train(fail_at=FAIL_AT)
    assert (run.output_dir / "last_checkpoint").read_text() == "model_0000003.pth"
    # Another seed: what was random in the first part is in the checkpoint.
    run.forget().train(resume=True, seed=1)
    assert run.seen == {i: whole.seen[i] for i in range(4, MAX_ITER)}
    assert run.rates() == whole.rates()
    resumed, expected = run.checkpoint(), whole.checkpoint()
    torch.testing.assert_close(resumed["model"], expected["model"], rtol=1e-6, atol=1e-6)
    states = [c["trainer"]["optimizer"]["state"] for c in (resumed, expected)]
    torch.testing.assert_close(*states, rtol=1e-6, atol=1e-6)
    assert run.results["bbox"] == pytest.approx(whole.results["bbox"], nan_ok=True)


def test_images_are_grouped_by_default(whole_runs):
    portraits = {f"toy_train_{i}.png" for i in (0, 3, 6, 9)}
    for names in whole_runs().seen.values():
        assert len({name in portraits for name in names}) == 1
    assert whole_runs().seen != whole_runs(**UNGROUPED).seen


def test_a_half_written_checkpoint_does_no_harm(tmp_path, whole_runs):
    run = toy.Run(tmp_path).train(fail_at=FAIL_AT)
    whole_file = whole_runs().output_dir / "model_0000007.pth"
    (run.output_dir / "model_0000007.pth").write_bytes(whole_file.read_bytes()[:1000])
    run.forget().train(resume=True)
    assert min(run.seen) == 4
    torch.testing.assert_close(
        run.checkpoint("model_0000007")["model"], whole_runs().checkpoint("model_0000007")["model"]
    )


def test_resume_without_a_checkpoint_starts_at_zero(tmp_path, whole_runs):
    run = toy.Run(tmp_path).train(resume=True)
    assert run.seen == whole_runs().seen


def test_without_resume_a_run_starts_at_zero(tmp_path, whole_runs):
    run = toy.Run(tmp_path).train(fail_at=FAIL_AT).forget().train()
    assert run.seen == whole_runs().seen
    assert run.rates() == whole_runs().rates()


@pytest.mark.parametrize("overrides", [{}, EMA], ids=["plain", "ema"])
def test_resuming_after_the_end(tmp_path, overrides):
    run = toy.Run(tmp_path, **{"train.max_iter": 4, **overrides}).train()
    results = run.results
    before = {path: path.read_bytes() for path in run.output_dir.glob("*.pth")}
    run.forget().train(resume=True)
    assert run.seen == {}
    assert {path: path.read_bytes() for path in run.output_dir.glob("*.pth")} == before
    assert (run.output_dir / "last_checkpoint").read_text() == "model_final.pth"
    assert run.results["bbox"] == pytest.approx(results["bbox"], nan_ok=True)

    run.cfg.train.max_iter = 6  # a longer run goes on
    run.train(resume=True)
    assert list(run.seen) == [4, 5]
    assert run.checkpoint()["iteration"] == 5
    run.cfg.train.max_iter = 2  # a shorter one is over
    run.forget().train(resume=True)
    assert run.seen == {}
    assert run.checkpoint()["iteration"] == 5


def test_a_missing_initial_checkpoint_is_named(tmp_path):
    run = toy.Run(tmp_path, **{"train.init_checkpoint": "nowhere/R-50.pkl"})
    with pytest.raises(FileNotFoundError, match="no checkpoint at .nowhere/R-50"):
        run.train()
    run.cfg.train.init_checkpoint = ""
    run.cfg.train.max_iter = 4
    run.train()
    run.cfg.train.init_checkpoint = "nowhere/R-50.pkl"
    run.train(resume=True)  # which needs it no more


@pytest.mark.parametrize(("first", "then"), [({}, EMA), (EMA, {})], ids=["on", "off"])
def test_the_average_may_be_switched_when_a_run_is_resumed(tmp_path, first, then, whole_runs):
    run = toy.Run(tmp_path, **first).train(fail_at=FAIL_AT)
    run.cfg = toy.config(run.output_dir, **then)
    run.forget().train(resume=True)
    assert list(run.seen) == list(range(4, MAX_ITER))
    assert ("trained_model" in run.checkpoint()) == bool(then)
    if then:  # training itself goes on as without the average
        expected = whole_runs().checkpoint()["model"]
        torch.testing.assert_close(run.checkpoint()["trained_model"], expected)
