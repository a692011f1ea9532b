"""Writes runs as SLURM jobs and submits them; a job that is stopped early is queued again."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ablations import Run

from .jobs import EvaluationRun

_SCRIPT = "job.sh"
_ID = "slurm_job"
# What the training exits with after SIGUSR1 or SIGTERM, once it has saved a checkpoint.
_STOPPED = "138|143"


def script(run: Run, train_net: Path, *, num_gpus: int, options: Sequence[str] = ()) -> str:
    """Returns the job's script.

    ``srun`` starts one process per GPU. Three minutes before the time limit, SLURM sends SIGUSR1:
    the training saves a checkpoint, and the script queues the job again, as SLURM itself does after
    a preemption (``--requeue``). ``--resume`` makes the first and every later start the same.

    Args:
        run: What to run.
        train_net: The script of the training.
        num_gpus: Of one machine.
        options: For ``#SBATCH``, such as ``--partition=gpu`` or ``--time=2-00:00:00``.
    """
    name = f"{run.row.name.replace('/', '_')}_seed{run.seed}"
    command = ["srun", sys.executable, str(train_net)]
    command += run.arguments(num_gpus=None)
    folder = run.folder.absolute()
    lines = [
        f"--job-name={name}",
        "--nodes=1",
        f"--ntasks-per-node={num_gpus}",
        f"--gpus-per-node={num_gpus}",
        "--requeue",
        "--open-mode=append",
        "--signal=USR1@180",
        f"--output={folder / 'slurm-%j.out'}",
        *options,
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in lines),
            f"cd {shlex.quote(os.getcwd())}",
            "export OMP_NUM_THREADS=1",
            shlex.join(command),
            "code=$?",
            f'case $code in {_STOPPED}) scontrol requeue "$SLURM_JOB_ID" ;; esac',
            "exit $code\n",
        ]
    )


def submit(
    runs: Sequence[Run],
    train_net: Path,
    *,
    num_gpus: int,
    options: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Submits the runs that are neither finished nor in the queue.

    Args:
        runs: In an order in which an evaluation follows the training that it needs.
        train_net: See :func:`script`, as for the next two.
        num_gpus: See there.
        options: See there.
        say: Takes lines of progress.

    Raises:
        FileNotFoundError: There is no ``sbatch``.
        RuntimeError: ``sbatch`` refused a job; the message is its own.
    """
    ids: dict[Path, str] = {}
    for run in runs:
        job = _queued(run.folder)
        if run.is_finished() or job:
            say(f"{run.name}: {f'job {job} is in the queue' if job else 'finished already'}")
            if job:
                ids[run.folder] = job
            continue
        run.folder.mkdir(parents=True, exist_ok=True)
        path = run.folder / _SCRIPT
        path.write_text(script(run, train_net, num_gpus=num_gpus, options=options))
        after = []
        if isinstance(run, EvaluationRun) and run.trained.folder in ids:
            after = [f"--dependency=afterok:{ids[run.trained.folder]}"]
        ids[run.folder] = _sbatch([*after, str(path)])
        (run.folder / _ID).write_text(ids[run.folder])
        say(f"{run.name}: job {ids[run.folder]}, {path}")


def _sbatch(arguments: list[str]) -> str:
    """Submits a job; returns its number."""
    try:
        found = subprocess.run(
            ["sbatch", "--parsable", *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise FileNotFoundError(
            "there is no command sbatch here: run this on a login node of the cluster, or leave "
            "out --submit slurm"
        ) from None
    number = re.match(r"\d+", found.stdout)
    if found.returncode or not number:
        raise RuntimeError(f"sbatch refused {arguments[-1]}: {(found.stderr or found.stdout)!r}")
    return number[0]


def _queued(folder: Path) -> str | None:
    """Returns the number of the folder's job if SLURM has it waiting or running."""
    path = folder / _ID
    if not path.is_file():
        return None
    job = path.read_text().strip()
    try:
        found = subprocess.run(
            ["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return job if found.returncode == 0 and found.stdout.strip() else None
