"""Trainings as torchrun, srun and flags start them, to be sent signals; prints a table of that.

    python -m tests.starts            # every starter, signal and receiver: minutes
    python -m tests.starts --list     # the cases
    python -m tests.starts torchrun   # those whose name contains the word

The table shows the seconds until all processes had ended, exit codes, and the last iteration saved.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.utils import comm
from tabulate import tabulate

from tests import toy

ROOT = Path(__file__).resolve().parent.parent
MAX_ITER = 1000


class SlowATSS(toy.RecordingATSS):
    """Sleeps in every step; writes its process id, and what it does, to ``$STARTS.<rank>``."""

    def forward(self, batched_inputs):
        what = "train" if self.training else "test"
        path = Path(f"{os.environ['STARTS']}.{comm.get_rank()}")
        if not path.exists() or path.read_text() != f"{os.getpid()} {what}":
            temporary = Path(f"{path}.temporary")
            temporary.write_text(f"{os.getpid()} {what}")
            temporary.replace(path)
        self.has_trained = self.training or getattr(self, "has_trained", False)
        if self.has_trained:  # not in the short evaluation before training
            time.sleep(float(os.environ.get(f"STARTS_{what.upper()}", 0)))
        return super().forward(batched_inputs)


def write_config(folder: Path, output_dir: Path) -> Path:
    """Writes a config whose model is :class:`SlowATSS`."""
    path = toy.write_config(folder / "config.py", output_dir)
    path.write_text(
        path.read_text()
        + "from tests.starts import MAX_ITER, SlowATSS\n"
        + "model._target_ = SlowATSS\ntrain.max_iter = MAX_ITER\ntrain.eval_period = 0\n"
        + "train.checkpointer.period = MAX_ITER\n"
    )
    return path


def free_port() -> int:
    """Returns a port that nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def commands(starter: str, arguments: list[str]) -> list[tuple[list[str], dict[str, str]]]:
    """Returns the command lines and variables that start a training.

    Args:
        starter: ``"alone"``, ``"flags"`` (two processes), ``"machines"`` (two launchers of one
            process each), ``"torchrun"`` or ``"srun"`` (variables of two processes).
        arguments: Of train_net.py.
    """
    train = [str(ROOT / "train_net.py"), *arguments]
    python = [sys.executable, *train]
    if starter == "alone":
        return [(python, {})]
    if starter == "flags":
        return [(_with_flags(python, "--num-gpus", "2"), {})]
    if starter == "machines":
        flags = ["--num-machines", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
        return [(_with_flags(python, *flags, "--machine-rank", str(rank)), {}) for rank in range(2)]
    if starter.startswith("torchrun"):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        launcher += ["--master-port", str(free_port())]
        launcher += ["--max-restarts", "1"] if starter == "torchrun restarts" else []
        return [([*launcher, *train], {})]
    assert starter == "srun", starter
    step = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    step |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    return [
        (python, {**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)})
        for rank in range(2)
    ]


def _with_flags(python: list[str], *flags: str) -> list[str]:
    return [*python[:2], *flags, *python[2:]]


class Training:
    """Processes that train in a folder.

    Attributes:
        starters: What was started, one command a machine (srun: one a process).
    """

    def __init__(
        self,
        folder: Path,
        starter: str,
        *arguments: str,
        each: Sequence[Sequence[str]] = ((), ()),
        each_env: Sequence[dict[str, str]] = ({}, {}),
        each_cwd: Sequence[Path] = (ROOT, ROOT),
        **variables: str,
    ) -> None:
        """
        Args:
            folder: For the config, the output and what is printed; has the data set.
            starter: As for :func:`commands`.
            *arguments: Of train_net.py.
            each: Arguments of each starter; first flags, then overrides.
            each_env: Variables of each starter.
            each_cwd: Folder of each starter.
            **variables: Of all.
        """
        self.folder = folder
        self.output_dir = folder / "output"
        config_file = write_config(folder, self.output_dir)
        self.marks = folder / "marks"
        for path in folder.glob("marks.*"):
            path.unlink()
        self.starters: list[subprocess.Popen] = []
        found = commands(starter, ["--config-file", str(config_file)])
        for index, (command, own) in enumerate(found):
            command = [*command, *each[index], *arguments]
            own = {**own, **each_env[index]}
            log = (folder / f"log.{index}").open("w")
            env = {"PYTHONPATH": str(ROOT), **os.environ, "STARTS": str(self.marks)}
            env |= {"STARTS_TRAIN": "0.2", **own, **variables}
            self.starters.append(
                subprocess.Popen(
                    command,
                    env=env,
                    cwd=each_cwd[index],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *error) -> None:
        for process in self.starters:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in self.ranks():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ranks(self) -> list[int]:
        """Returns the process ids of the ranks that have begun to train."""
        marks = sorted(self.folder.glob("marks.[0-9]"))
        return [int(path.read_text().split()[0]) for path in marks]

    def wait_until(self, what: str, num_ranks: int = 1, seconds: float = 180) -> None:
        """Waits until so many ranks ``"train"`` or ``"test"``."""
        until = time.monotonic() + seconds
        while True:
            marks = [path.read_text() for path in self.folder.glob("marks.[0-9]")]
            if sum(mark.endswith(what) for mark in marks) >= num_ranks:
                return
            if time.monotonic() > until or all(p.poll() is not None for p in self.starters):
                raise AssertionError(f"no {what}: {self.said()}")
            time.sleep(0.05)

    def wait(self, seconds: float = 120) -> list[int]:
        """Waits until all processes have ended, and returns the exit codes of the starters."""
        until = time.monotonic() + seconds
        codes = [p.wait(max(until - time.monotonic(), 0.1)) for p in self.starters]
        while any(map(_is_alive, self.ranks())):
            assert time.monotonic() < until, "a rank trains on"
            time.sleep(0.05)
        return codes

    def said(self) -> str:
        """Returns all that was printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("log.*")))

    def saved(self) -> int | None:
        """Returns the iteration of the last checkpoint; None without one."""
        pointer = self.output_dir / "last_checkpoint"
        if not pointer.is_file():
            return None
        return torch.load(self.output_dir / pointer.read_text())["iteration"]


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


STARTERS = {"alone": 1, "flags": 2, "torchrun": 2, "srun": 2, "machines": 2}
MOMENTS = ("train", "test", "start")


def cases() -> dict[str, tuple[str, str, str, str]]:
    """Returns name -> (starter, signal, receiver, moment)."""
    found = {}
    for starter, num_ranks in STARTERS.items():
        receivers = ["rank 0"] if num_ranks == 1 else ["launcher", "rank 0", "rank 1", "session"]
        if starter == "srun":  # has no launcher of its own here
            receivers = receivers[1:]
        for receiver in receivers:
            for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGINT x 2", "SIGKILL"):
                for moment in MOMENTS if name == "SIGTERM" else MOMENTS[:1]:
                    # Before they meet, processes of machines know nothing of each other.
                    is_known = receiver == "session" or starter == "flags"
                    if moment != "start" or (is_known and not receiver.startswith("rank")):
                        case = (starter, name, receiver, moment)
                        found[", ".join(case)] = case
    return found


def run_case(starter: str, name: str, receiver: str, moment: str) -> list:
    """Runs a case; returns its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        toy.write_dataset(Path(folder))
        arguments = ["train.max_iter=3"] if moment == "test" else []
        variables = {"STARTS_TEST": "60"} if moment == "test" else {}
        with Training(Path(folder), starter, *arguments, **variables) as training:
            if moment == "start":
                time.sleep(4)
            else:
                training.wait_until("train", STARTERS[starter])  # there is a test before
                training.wait_until(moment, STARTERS[starter])
                time.sleep(0.5)
            signum = getattr(signal, name.split()[0])
            for _ in range(2 if "x 2" in name else 1):
                if receiver == "session":
                    for process in training.starters:
                        os.killpg(process.pid, signum)
                elif receiver == "launcher":
                    training.starters[0].send_signal(signum)
                else:
                    os.kill(training.ranks()[int(receiver[-1])], signum)
                time.sleep(0.3)
            start = time.monotonic()
            codes = training.wait()
            seconds = time.monotonic() - start + 0.3
            said = [x for x in training.said().splitlines() if "topped by" in x or "lost " in x]
            noise = training.said().count("Traceback")
            codes = " ".join(map(str, codes))
            return [seconds, codes, training.saved(), noise, " | ".join(said)[-110:]]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="in the names of the cases to run")
    parser.add_argument("--list", action="store_true", help="print the cases")
    args = parser.parse_args()
    chosen = {n: case for n, case in cases().items() if all(word in n for word in args.words)}
    if args.list:
        print("\n".join(chosen))
        return
    rows = []
    for _name, case in chosen.items():
        rows.append([*case, *run_case(*case)])
        print(rows[-1], flush=True)
    headers = [
        "starter",
        "signal",
        "receiver",
        "moment",
        "seconds",
        "code",
        "saved",
        "tracebacks",
        "said",
    ]
    print(tabulate(rows, headers=headers, floatfmt=".1f"))


if __name__ == "__main__":
    main()
