"""A resumed run has the metrics, evaluations and best weights of an uninterrupted one."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atss_d2.engine import trainer
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

MAX_ITER = 8
OVERRIDES = {
    "train.max_iter": MAX_ITER,
    "train.checkpointer.period": 2,
    "train.eval_period": 4,
    "train.best_checkpoint": {"enabled": True, "metric": "bbox/AP"},
}
CLOCK = {"time", "data_time", "rank_data_time", "eta_seconds"}


def rows(run) -> list[tuple]:
    """The lines of ``metrics.json`` by iteration, without seconds and comparable."""
    lines = map(json.loads, (run.output_dir / "metrics.json").read_text().splitlines())
    # Detectron2 writes results that were not due behind later scalars.
    lines = sorted(lines, key=lambda row: row["iteration"])
    return [tuple((k, repr(v)) for k, v in row.items() if k not in CLOCK) for row in lines]


def iterations(run) -> list[int]:
    return [int(dict(row)["iteration"]) for row in rows(run)]


def make(folder: Path, **overrides) -> toy.Run:
    folder.mkdir(exist_ok=True)
    return toy.Run(folder, **{**OVERRIDES, **overrides})


@pytest.fixture(scope="module")
def whole(toy_data, tmp_path_factory):
    """``whole(log_period)`` is an uninterrupted run."""
    runs = {}

    def get(log_period: int) -> toy.Run:
        if log_period not in runs:
            folder = tmp_path_factory.mktemp("whole")
            runs[log_period] = make(folder, **{"train.log_period": log_period}).train()
        return runs[log_period]

    return get


KILLS = {
    "in-a-step": {"TOY_KILL_AT": 5},
    "in-an-evaluation": {"TOY_KILL_EVALUATION_AT": 3},
    "after-an-evaluation": {"TOY_KILL_AT": 4},
    "in-the-last-evaluation": {"TOY_KILL_EVALUATION_AT": MAX_ITER},
}


@pytest.mark.parametrize(
    ("kill", "log_period"),
    [
        ("in-a-step", 1),
        ("in-a-step", 3),
        ("in-an-evaluation", 1),
        ("in-an-evaluation", 3),
        ("after-an-evaluation", 4),
        ("after-an-evaluation", 3),  # which has not been written
        ("in-the-last-evaluation", 3),
    ],
)
def test_killed_and_resumed_it_equals_the_uninterrupted_run(tmp_path, whole, kill, log_period):
    expected = whole(log_period)
    run = make(tmp_path, **{"train.log_period": log_period})
    toy.in_killed_process(run.train, **KILLS[kill])
    run.train(resume=True, seed=1)
    if kill == "in-the-last-evaluation":  # its iteration is counted by whoever resumes
        assert rows(run)[:-1] == rows(expected)[:-1]
        assert rows(run)[-1][:-1] == rows(expected)[-1][:-1]
    else:
        assert rows(run) == rows(expected)
        toy.assert_equal(run.checkpoint(), expected.checkpoint())
    toy.assert_equal(run.checkpoint("model_best"), expected.checkpoint("model_best"))
    assert run.results["bbox"] == pytest.approx(expected.results["bbox"], nan_ok=True, rel=0, abs=0)


def test_an_error_leaves_no_line_that_is_not_due(tmp_path, whole):
    run = make(tmp_path, **{"train.log_period": 3}).train(fail_at=4)
    assert "total_loss" in dict(next(x for x in rows(run) if dict(x)["iteration"] == "3"))
    with (run.output_dir / "metrics.json").open("a") as file:
        file.write('{"iteration": 6, "total_lo')  # torn
    run.train(resume=True)
    assert rows(run) == rows(whole(3))


def test_an_evaluation_that_failed_is_repeated(tmp_path, whole, monkeypatch):
    run = make(tmp_path, **{"train.log_period": 1})
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "do_test", failing)
        with pytest.raises(toy.ToyError):
            run.train()
    assert iterations(run)[-1] == 3  # written at the end, without results
    run.train(resume=True)
    assert rows(run) == rows(whole(1))


def failing(*_) -> None:
    raise toy.ToyError("in the evaluation")


def test_a_prolonged_run_keeps_its_last_evaluation(tmp_path, whole):
    run = make(tmp_path, **{"train.max_iter": 4, "train.log_period": 3}).train()
    assert iterations(run)[-2:] == [3, 4]
    run.cfg.train.max_iter = MAX_ITER
    run.train(resume=True)
    assert iterations(run) == [2, 3, 5, 7, 8]
    assert "bbox/AP" in dict(rows(run)[1])


def test_a_run_from_scratch_does_not_mix_with_an_earlier_one(tmp_path):
    run = make(tmp_path, **{"train.max_iter": 2}).train()
    first = rows(run)
    run.cfg.train.seed = 7
    run.train()
    assert len(rows(run)) == len(first)
    assert rows(run) != first
    assert (run.output_dir / "metrics_previous.json").is_file()


def test_tensorboard_hides_what_is_repeated(tmp_path, whole):
    run = make(tmp_path, **{"train.log_period": 1}).train(fail_at=5)
    run.train(resume=True)
    events = EventAccumulator(str(run.output_dir)).Reload()
    assert [x.step for x in events.Scalars("total_loss")] == list(range(MAX_ITER))


def test_a_checkpoint_of_an_earlier_version(tmp_path, whole):
    run = make(tmp_path, **{"train.log_period": 1}).train(fail_at=5)
    path = run.output_dir / "model_0000003.pth"
    content = torch.load(path)
    del content["trainer"]["hooks"]["ContinuedMetrics"]
    torch.save(content, path)
    run.train(resume=True)
    assert iterations(run) == iterations(whole(1))


def test_yaml(tmp_path):
    own = ["SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 3]
    expected = toy.YamlRun(tmp_path / "whole", *own)
    expected.train()
    run = toy.YamlRun(tmp_path / "killed", *own)
    toy.in_killed_process(run.train, TOY_KILL_EVALUATION_AT=2)
    run.train(resume=True, seed=1)
    assert rows(run) == rows(expected)
    toy.assert_equal(run.checkpoint(), expected.checkpoint())
