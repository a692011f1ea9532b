"""``make test-gpu``: its list, its processes, its table; the checks with forced branches."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import CHECKS, Environment, Outcome, registry, runner, training
from benchmarks.gpu import __main__ as command
from benchmarks.gpu.registry import Skipped

ROOT = Path(__file__).resolve().parents[2]
# Left out: steps of three R-50, runs of train_net.py (below, pretended), and tests that run anyway.
# `python -m benchmarks.gpu --device cpu --tiny` runs them all.
SLOW = ("step_time", "step_memory", "resume_under_amp", "two_processes", "suite")


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in SLOW])
def test_a_check_passes_on_the_cpu(name, tmp_path):
    outcome = runner.run_here(name, Environment("cpu", True, tmp_path))
    assert outcome.result == "passed", outcome.figure
    assert outcome.figure
    assert not torch.are_deterministic_algorithms_enabled()


def test_without_a_gpu_it_says_so_and_lists_the_checks():
    code = (
        "import sys, torch; torch.cuda.is_available = lambda: False\n"
        "from benchmarks.gpu.__main__ import main; sys.exit(main([]))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("torch finds no GPU on this machine: nothing was checked.")
    lines = found.stdout.splitlines()
    assert [line.split()[0] for line in lines[4 : 4 + len(CHECKS)]] == list(CHECKS)
    assert lines[-1] == f"{len(CHECKS)} checks, about 10 minutes"
    assert sum(check.seconds for check in CHECKS.values()) <= 600
    assert "Warning" not in found.stderr


def test_a_wrong_name(capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.main(["lables"])
    assert exit_info.value.code == 2
    assert "there is no check 'lables'" in capsys.readouterr().err


def run_with(monkeypatch, script, tmp_path, **options):
    """Runs a check whose process is a shell script."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(runner.sys, "executable", str(path))
    options = {"device": "cpu", "tiny": True, "num_gpus": 1, "seconds": 600, **options}
    return runner.run_all(["labels", "two_processes", "nms"], say=lambda outcome: None, **options)


def test_a_process_that_dies_hides_no_other_check(monkeypatch, tmp_path):
    labels, two, nms = run_with(monkeypatch, 'echo "out of memory"; exit 134', tmp_path)
    assert (labels.result, nms.result) == ("FAILED", "FAILED")
    assert labels.figure == "the process died with exit code 134: out of memory"
    assert two == Outcome("two_processes", "skipped", "needs 2 GPUs, there is 1", 0.0)
    assert (labels.is_bad, two.is_bad) == (True, False)


def is_alive(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_process_that_hangs_is_ended_with_its_children(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "_PATIENCE", 0)
    monkeypatch.setattr(runner, "_LEAST_SECONDS", 0.2)
    labels, *_ = run_with(monkeypatch, f"sleep 77 & echo $! > {tmp_path}/pid; wait", tmp_path)
    assert (labels.result, labels.figure[:10]) == ("FAILED", "no end aft")
    child = int((tmp_path / "pid").read_text())
    for _ in range(200):  # the signal has been sent, but not yet delivered
        if not is_alive(child):
            return
        time.sleep(0.02)
    pytest.fail(f"{child} is still alive")


def test_what_does_not_fit_into_the_time_is_not_run(monkeypatch, tmp_path):
    outcomes = run_with(monkeypatch, "exit 0", tmp_path, num_gpus=2, seconds=1)
    assert {outcome.result for outcome in outcomes} == {"not run"}
    assert all(outcome.is_bad for outcome in outcomes)


@pytest.mark.parametrize(
    ("error", "result", "figure"),
    [
        (None, "passed", "3 of 3"),
        (AssertionError("losses: 0.1, allowed is 1e-05"), "FAILED", "losses: 0.1, allowed"),
        (
            torch.cuda.OutOfMemoryError("CUDA out of memory"),
            "FAILED",
            "OutOfMemoryError: CUDA out of",
        ),
        (Skipped("no _C here"), "skipped", "no _C here"),
    ],
)
def test_outcomes_of_a_check(monkeypatch, tmp_path, error, result, figure):
    def run(env):
        if error is not None:
            raise error
        return "3 of 3"

    monkeypatch.setitem(registry.CHECKS, "made_up", registry.Check("made_up", "nothing", 1, 1, run))
    outcome = runner.run_here("made_up", Environment("cpu", True, tmp_path))
    assert outcome.result == result
    assert outcome.figure.startswith(figure)


def test_the_table_goes_into_the_document(monkeypatch, tmp_path, capsys):
    outcomes = [Outcome("labels", "passed", "0 | 0", 3.2), Outcome("nms", "FAILED", "others", 2.0)]
    monkeypatch.setattr(command, "run_all", lambda names, **options: outcomes)
    document = tmp_path / "performance.md"
    document.write_text((ROOT / "docs" / "performance.md").read_text())
    assert command.main(["labels", "nms", "--device", "cpu", "--document", str(document)]) == 1
    block = document.read_text().partition("<!-- begin gpu -->")[2].partition("<!-- end gpu")[0]
    assert f"torch {torch.__version__}, CUDA" in block
    assert [x.strip() for x in block.splitlines()[-3].split("|")[2:4]] == ["passed", "0 ; 0"]
    assert "1 passed, 1 FAILED (nms); 5 s" in capsys.readouterr().out
    del outcomes[1]
    assert command.main(["labels", "--device", "cpu"]) == 0


class PretendedRun:
    """Stands for runs of train_net.py: weights that moved by 1, and are ``off`` in the second."""

    off = 0.0

    def __init__(self, env, name, **options):
        self.is_second, self.console = name in ("killed", "two"), env.folder / name
        self.console.write_text("Starting training from iteration 2")

    def finish(self, *flags, overrides=()):
        return self

    kill_at = finish

    def last_iteration(self):
        return 2

    def weights(self, name="model_final"):
        return torch.tensor([float(name == "model_final") + self.off * self.is_second])


@pytest.mark.parametrize("name", ["resume_under_amp", "two_processes"])
def test_checks_of_training_compare_with_the_way_of_the_weights(name, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "_Run", PretendedRun)
    env = Environment("cpu", True, tmp_path)
    assert runner.run_here(name, env).result == "passed"
    monkeypatch.setattr(PretendedRun, "off", 0.1)
    outcome = runner.run_here(name, env)
    assert outcome.figure.startswith(
        "distance of the weights, as a share of their way: 0.1, allowed"
    )


def test_the_config_of_the_training_checks_builds(tmp_path):
    from atss_d2.config import load_config

    run = training._Run(Environment("cuda", False, tmp_path), "one", max_iter=5, period=1)
    cfg = load_config(str(run.config))
    assert (cfg.train.device, cfg.train.max_iter, cfg.optimizer.lr) == ("cuda", 5, 2e-3)
    assert cfg.train.ema.enabled is False
