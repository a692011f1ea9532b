"""Rows, runs and results of a study without any training."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from ablations import Result, plan_runs, select_rows

# Stands for train_net.py: writes what a run leaves, in no time.
FAKE_TRAIN_NET = """
import json, os, sys, time, yaml
from pathlib import Path

folder = Path(sys.argv[sys.argv.index("--config-file") + 1]).parent
seed = int(folder.name.removeprefix("seed"))
assert "--resume" in sys.argv
with open(os.environ["CALLS"], "a") as calls:
    threads = os.environ["OMP_NUM_THREADS"]
    calls.write(f"{folder.parent.name} {seed} {threads} {os.getpid()} {time.monotonic()}\\n")
time.sleep(float(os.environ.get("SLEEP", 0)))
(folder / "last_checkpoint").write_text("model_0000001.pth")
if str(seed) in os.environ.get("FAIL", "").split():
    print("some lines before")
    sys.exit("RuntimeError: out of luck")
metrics = {"iteration": 5, "bbox/AP": 10.0 + seed, "bbox/AP50": 20.0, "bbox/AP75": float("nan")}
(folder / "metrics.json").write_text(
    json.dumps({"iteration": 2, "bbox/AP": 1.0}) + "\\n" + json.dumps(metrics) + "\\n"
)
with open(os.environ["CALLS"], "a") as calls:
    calls.write(f"end {seed} {threads} {os.getpid()} {time.monotonic()}\\n")
"""


class Study:
    """A folder of runs, and a script that pretends to train."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.train_net = folder / "fake_train_net.py"
        self.train_net.write_text(FAKE_TRAIN_NET)
        self.lines: list[str] = []

    def plan(self, *patterns: str, seeds=(0,), data="shapes", overrides=()):
        return plan_runs(
            select_rows(patterns), data, seeds=seeds, output=self.output, overrides=overrides
        )

    def calls(self) -> list[list[str]]:
        """Start and end of every process: name or "end", seed, threads, id, time."""
        path = self.folder / "calls"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return Study(tmp_path)


def write_result(run, **changes) -> None:
    """Pretends that a run is finished."""
    metrics = dict.fromkeys(("AP50", "AP75", "APs", "APm"), 5.0) | {"APl": None}
    values = {
        "row": run.row.name,
        "data": run.data,
        "seed": run.seed,
        "config": run.config_hash,
        "overrides": [],
        "iterations": 100,
        "seconds": 60.0,
        "metrics": {"AP": 10.0, **metrics},
    }
    result = Result(**{**values, **changes})
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "results.json").write_text(json.dumps(asdict(result)))
