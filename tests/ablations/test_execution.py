"""Runs as processes: in parallel, resumed, failing, interrupted. The training is pretended."""

import os
import time
from pathlib import Path

import pytest

from ablations import command, execute, locked, read_results

ROOT = Path(__file__).resolve().parents[2]


def execute_study(study, runs, **options):
    return execute(runs, study.train_net, say=study.lines.append, **options)


def test_runs_every_row_and_seed_and_keeps_the_results(study):
    runs = study.plan("table4/k3", "table4/k5", seeds=(0, 1))
    assert execute_study(study, runs, jobs=2, threads=3) == []
    results = list(read_results(study.output, "shapes"))
    assert {(r.row, r.seed, r.metrics["AP"]) for r in results} == {
        (f"table4/{k}", seed, 10.0 + seed) for k in ("k3", "k5") for seed in (0, 1)
    }
    assert all(0 < r.seconds < 60 and r.metrics["AP75"] is None for r in results)
    assert {threads for _, _, threads, *_ in study.calls()} == {"3"}
    assert study.lines[-1].startswith("[4/4, 0.")
    assert "AP 1" in study.lines[-1]


def test_finished_runs_are_not_repeated(study):
    runs = study.plan("table4/k3", seeds=(0, 1))
    execute_study(study, runs[:1])
    study.lines.clear()
    execute_study(study, study.plan("table4/k3", seeds=(0, 1)))
    assert study.lines[0] == "1 of 2 runs are finished already"
    starts = [seed for name, seed, *_ in study.calls() if name != "end"]
    assert starts == ["0", "1"]


def test_a_failure_is_reported_and_does_not_stop_the_others(study, monkeypatch):
    monkeypatch.setenv("FAIL", "0 2")
    runs = study.plan("table4/k3", seeds=(0, 1, 2))
    failed = execute_study(study, runs)
    assert [run.seed for run in failed] == [0, 2]
    assert [result.seed for result in read_results(study.output, "shapes")] == [1]
    (line,) = [line for line in study.lines if "seed 0: FAILED" in line]
    assert "FAILED: RuntimeError: out of luck" in line
    log = Path(line.split("all of it: ")[1].rstrip(")"))
    assert log == runs[0].folder / "console.log"
    assert "some lines before" in log.read_text()


def test_a_run_that_evaluates_nothing_has_failed(study):
    study.train_net.write_text("print('nothing to see')")
    (run,) = study.plan("table4/k3")
    assert execute_study(study, [run]) == [run]
    assert "FAILED: nothing to see" in study.lines[-1]


def test_an_interruption_ends_the_processes(study, monkeypatch):
    monkeypatch.setenv("SLEEP", "60")

    def interrupt(line):
        if line.startswith("start   table4/k3 seed 1"):
            while not study.calls():  # until the first one is at work
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(study.plan("table4/k3", seeds=(0, 1)), study.train_net, jobs=2, say=interrupt)
    ((*_, pid, _),) = study.calls()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert list(read_results(study.output, "shapes")) == []


def test_two_studies_do_not_share_a_folder(tmp_path):
    with locked(tmp_path / "output"):
        at_work = pytest.raises(BlockingIOError, match="another study is at work in .*output")
        with at_work, locked(tmp_path / "output"):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "output"):  # free again
        pass


def test_the_command_can_be_pasted(study, monkeypatch):
    monkeypatch.chdir(ROOT)
    (run,) = study.plan("table4/k3")
    assert command(run, ROOT / "train_net.py") == (
        f"python train_net.py --config-file {run.folder}/run.yaml --resume"
    )
    (run,) = study.plan("table4/k3", data="coco", overrides=["model.head.conv_dims=[8, 8]"])
    assert command(run, ROOT / "train_net.py", num_gpus=2).endswith("'model.head.conv_dims=[8, 8]'")
