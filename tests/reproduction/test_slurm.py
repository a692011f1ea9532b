"""Jobs of SLURM, with commands that only pretend to be SLURM's."""

import subprocess
import sys
from pathlib import Path

import pytest

from reproduction import __main__ as command
from reproduction.jobs import plan
from reproduction.recipes import select

ROOT = Path(__file__).resolve().parents[2]
TTA = "coco/atss_dcnv2_X_101_32x8d_FPN_2x_tta"
SBATCH = 'echo "$*" >> calls; echo $((100 + $(wc -l < calls)))'
SQUEUE = "cat queue"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder in which sbatch and squeue work; ``calls`` and ``queue`` are its state."""
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submit(*options):
    return command.main([TTA, "--submit", "slurm", "--nproc", "8", "--output", "out", *options])


def test_an_evaluation_waits_for_its_training_and_nothing_is_submitted_twice(cluster, capsys):
    assert submit("--sbatch=--time=2-00:00:00") == 0
    trained, evaluated = (cluster / "calls").read_text().splitlines()
    assert "--dependency" not in trained
    assert evaluated.split()[1] == "--dependency=afterok:101"
    runs = plan(select([TTA]), output=Path("out"))
    text = (runs[0].folder / "job.sh").read_text()
    for line in (
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --requeue",
        "#SBATCH --time=2-00:00:00",
        f"cd {cluster}",
    ):
        assert f"{line}\n" in text
    assert f"srun {sys.executable} {ROOT / 'train_net.py'}" in text
    assert "--resume" in text
    subprocess.run(["bash", "-n", str(runs[0].folder / "job.sh")], check=True)

    (cluster / "queue").write_text("a line of every job")
    assert submit() == 0
    assert len((cluster / "calls").read_text().splitlines()) == 2
    assert "job 101 is in the queue" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "is_queued"), [(0, False), (1, False), (138, True), (143, True)])
def test_a_stopped_job_queues_itself_again(cluster, code, is_queued):
    """The exit codes of a training that SIGUSR1 or SIGTERM has stopped after a checkpoint."""
    submit()
    for name, text in (("srun", f"exit {code}"), ("scontrol", 'echo "$*" > again')):
        path = cluster / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    script = plan(select([TTA]), output=Path("out"))[0].folder / "job.sh"
    found = subprocess.run(
        ["bash", str(script)], env={"SLURM_JOB_ID": "7", "PATH": "bin:/bin:/usr/bin"}
    )
    assert found.returncode == code
    assert (cluster / "again").exists() == is_queued


def test_no_cluster_here(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        submit()
    assert "there is no command sbatch here: run this on a login node" in exit_info.value.code
