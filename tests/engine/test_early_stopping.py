"""Runs whose evaluations do not improve end early, and stay ended when they are resumed."""

import pytest

from atss_d2.checkpoint import SafeCheckpointer
from atss_d2.config import ConfigError
from atss_d2.engine.early_stopping import EarlyStopping
from tests import toy

KEYS = {"train.max_iter": 10, "train.eval_period": 2, "train.checkpointer.period": 2}


def early(**options) -> dict:
    # The AP never rises by 1000: the first evaluation is the best.
    return {"train.early_stopping": {"enabled": True, "metric": "bbox/AP", "min_delta": 1000.0}} | {
        f"train.early_stopping.{k}": v for k, v in options.items()
    }


@pytest.mark.usefixtures("toy_data")
def test_a_run_stops_and_continues_only_with_more_patience(tmp_path, caplog):
    caplog.set_level("INFO", "atss_d2")
    run = toy.Run(tmp_path, **KEYS, **early(patience=2)).train()
    assert list(run.seen) == list(range(6))
    assert "Stopped early after iteration 5: bbox/AP has not improved on " in caplog.text
    assert run.checkpoint()["iteration"] == 5
    assert run.results["bbox"]
    run.forget().train(resume=True)
    assert run.seen == {}  # it is over
    assert run.checkpoint()["iteration"] == 5
    run.cfg.train.early_stopping.patience = 3
    run.train(resume=True)
    assert list(run.seen) == [6, 7]
    assert run.checkpoint()["trainer"]["iteration"] == 7


@pytest.mark.usefixtures("toy_data")
def test_an_interrupted_run_stops_where_the_whole_one_does(tmp_path):
    run = toy.Run(tmp_path, **KEYS, **early(patience=2)).train(fail_at=5).train(resume=True)
    assert max(run.seen) == 5
    assert run.checkpoint()["iteration"] == 5


def stops_at(values, folder, **options) -> int | None:
    """The number of evaluations after which the hook would stop."""
    hook = EarlyStopping(SafeCheckpointer(None, str(folder)), metric="a/b", **options)
    hook.trainer = type("Trainer", (), {"iter": 0})()
    for count, value in enumerate(values, 1):
        hook.trainer.iter = count
        hook.update({"a": {"b": value}})
        if hook._is_over:
            return count
    return None


@pytest.mark.parametrize(
    ("values", "options", "count"),
    [
        ([1, 2, 1, 3, 3, 2], {"patience": 2}, 6),
        ([1, 2, 1, 3, 3, 4], {"patience": 2}, None),
        ([3, 2, 2, 1], {"patience": 1, "mode": "min"}, 3),
        ([1.0, 1.4, 1.8, 2.2], {"patience": 2, "min_delta": 0.5}, None),
        ([1.0, 1.4, 1.4, 2.2], {"patience": 2, "min_delta": 0.5}, 3),
        ([float("nan"), float("nan"), 0.0], {"patience": 2}, 2),
        ([float("nan"), 0.0, 1.0], {"patience": 2, "min_delta": 0.5}, None),
    ],
)
def test_patience(tmp_path, values, options, count):
    assert stops_at(values, tmp_path, **options) == count


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train.eval_period": 0}, "set train.eval_period"),
        ({"train.early_stopping.patience": 0}, "patience must be >= 1, got 0"),
        ({"train.early_stopping.mode": "up"}, '"max" or "min", got "up"'),
    ],
)
def test_impossible_values(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        toy.Run(tmp_path, **{**KEYS, **early(), **options}).train()
