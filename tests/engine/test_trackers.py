"""Writers for services get all metrics, and no failure of theirs stops a training."""

import sys
import threading
import types

import pytest
from detectron2.config import LazyCall as L
from detectron2.utils.events import JSONWriter

from atss_d2.config import ConfigError
from atss_d2.engine import trackers
from tests import toy

KEYS = {"train.max_iter": 4, "train.eval_period": 2, "train.checkpointer.period": 2}


class FakeRun:
    """A run at any of the three services."""

    def __init__(self, **options) -> None:
        self.options = options
        self.id = self.name = options.get("id") or options.get("name") or "run-1"
        self.info = types.SimpleNamespace(run_id=options.get("run_id") or "run-1")
        self.rows: dict[int, dict[str, float]] = {}
        self.is_finished = False

    def log(self, row, step) -> None:
        self.rows.setdefault(step, {}).update(row)

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def runs(monkeypatch) -> list[FakeRun]:
    """Puts modules in place of the three libraries; the list gets every run."""
    runs: list[FakeRun] = []

    def start(**options) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    def log(row, step) -> None:
        runs[-1].log(row, step)

    def log_params(parameters) -> None:
        runs[-1].options.setdefault("config", {}).update(parameters)

    def finish() -> None:
        runs[-1].finish()

    functions = {
        "wandb": {"init": start},
        "trackio": {"init": start, "log": log, "finish": finish},
        "mlflow": {
            "set_tracking_uri": lambda uri: None,
            "start_run": start,
            "log_params": log_params,
            "log_metrics": log,
            "end_run": finish,
        },
    }
    for name, content in functions.items():
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace()
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return runs


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_rows_and_resuming(tmp_path, name, runs):
    run = toy.Run(tmp_path, **KEYS, **{"train.writers": [name]}).train(fail_at=3)
    (first,) = runs
    assert first.is_finished
    assert first.options["config"]["train.max_iter"] in (4, "4")
    assert first.options["config"]["model._target_"] == "tests.toy.RecordingATSS"
    for iteration in range(2):
        row = run.metrics[iteration]
        assert (
            first.rows[iteration].items()
            >= {
                "total_loss": row["total_loss"],
                "lr": row["lr"],
            }.items()
        )
    run.train(resume=True)
    second = runs[1]
    assert "run-1" in second.options.values()
    assert second.rows[3]["total_loss"] == run.metrics[3]["total_loss"]
    assert any(key.startswith("bbox/") for row in second.rows.values() for key in row)


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_failures_are_warnings(tmp_path, place, runs, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise ConnectionError("no network\nno idea")

    if place == "init":
        monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    else:
        monkeypatch.setattr(FakeRun, place, fail)
    run = toy.Run(tmp_path, **KEYS, **{"train.writers": ["wandb"]}).train()
    assert run.metrics[3]["total_loss"]
    (warning,) = [x for x in caplog.messages if x.startswith("train.writers: wandb ")]
    assert warning.endswith("(ConnectionError: no network); the training goes on")


@pytest.mark.usefixtures("toy_data")
def test_a_library_that_hangs(tmp_path, runs, monkeypatch, caplog):
    never = threading.Event()
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: never.wait(20))
    monkeypatch.setattr(trackers, "_SECONDS_TO_CLOSE", 0.1)
    monkeypatch.setattr(trackers, "_MAX_ROWS", 2)
    toy.Run(tmp_path, **KEYS, **{"train.writers": ["wandb"]}).train()
    never.set()
    (warning,) = [x for x in caplog.messages if x.startswith("train.writers: wandb ")]
    assert "does not answer" in warning


@pytest.mark.usefixtures("toy_data")
def test_nodes(tmp_path, runs):
    nodes = [
        L(trackers.WandbWriter)(project="own"),
        L(JSONWriter)(json_file=str(tmp_path / "own.json")),
    ]
    run = toy.Run(tmp_path, **KEYS)
    run.cfg.train.writers = nodes
    run.train()
    assert runs[0].options["project"] == "own"
    assert (tmp_path / "own.json").stat().st_size


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandb", "train.writers has 'wandb', which is not installed: pip install wandb"),
        ("tensorbored", "train.writers has 'tensorbored': known are wandb, mlflow, trackio"),
        (3, "must be names or Detectron2's EventWriters, got 3"),
    ],
)
def test_what_is_not_there(tmp_path, name, message, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=message):
        trackers.build_writers(toy.config(tmp_path, **{"train.writers": [name]}))
