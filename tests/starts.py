"""Trainings as torchrun, srun and flags start them, to be sent signals; prints a table of that.

    python -m tests.starts            # every starter, signal and receiver: an hour or two
    python -m tests.starts --list     # the cases
    python -m tests.starts 'flags, SIGTERM' spawn   # those whose names contain the words

The table shows the seconds until all processes had ended, exit codes, the last iteration saved, and
whether --resume then gave the model_final.pth of a training that nobody stopped, bit for bit.
"""

import argparse
import contextlib
import json
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
from tabulate import tabulate

from tests import toy

ROOT = Path(__file__).resolve().parent.parent
MAX_ITER = 1000


def write_config(folder: Path, output_dir: Path) -> Path:
    """Writes a config whose model is :class:`~tests.slow_training.SlowATSS`."""
    path = toy.write_config(folder / "config.py", output_dir, is_augmented=True)
    path.write_text(
        path.read_text()
        + "from tests.slow_training import SlowATSS\n"
        + f"model._target_ = SlowATSS\ntrain.max_iter = {MAX_ITER}\ntrain.eval_period = 0\n"
        + f'train.checkpointer.period = {MAX_ITER}\nmodel.backbone.norm = "GN"\n'
        + "train.ema.enabled = True\n"
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

    def wait_until_spawned(self, num: int) -> None:
        """Waits until a starter has so many child processes."""
        pid = self.starters[0].pid
        while len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) < num:
            time.sleep(0.01)

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
# Moment -> variables that make it long.
MOMENTS = {
    "train": {},
    "test": {"STARTS_TEST": "60"},
    "start": {},
    "spawn": {},
    "save": {"STARTS_SAVE": "model_0000003.pth"},
    "save final": {"STARTS_SAVE": "model_final.pth", "STARTS_TRAIN": "0"},
    "last test": {"STARTS_TEST": "60", "STARTS_TEST_AFTER": "12", "STARTS_TRAIN": "0"},
}
# Signal -> moments at which it is sent.
SIGNALS = {
    "SIGTERM": tuple(MOMENTS),
    "SIGINT": ("train", "spawn"),
    "SIGUSR1": ("train",),
    "SIGINT x 2": ("train", "test"),
    "SIGKILL": ("train", "spawn", "save", "last test"),
}
# For the runs that these signals are sent to.
SHORT = ["train.max_iter=12", "train.checkpointer.period=4", "train.eval_period=6"]


def cases() -> dict[str, tuple[str, str, str, str]]:
    """Returns name -> (starter, signal, receiver, moment)."""
    found = {}
    for starter, num_ranks in STARTERS.items():
        receivers = ["rank 0"] if num_ranks == 1 else ["launcher", "rank 0", "rank 1", "session"]
        if starter == "srun":  # has no launcher of its own here
            receivers = receivers[1:]
        for receiver in receivers:
            for name, moments in SIGNALS.items():
                for moment in moments:
                    is_early = moment in ("start", "spawn")
                    # Before they meet, processes of machines know nothing of each other.
                    is_known = receiver == "session" or starter == "flags"
                    if is_early and (not is_known or receiver.startswith("rank")):
                        continue
                    if starter in ("alone", "flags") or moment in ("train", "test", "start"):
                        case = (starter, name, receiver, moment)
                        found[", ".join(case)] = case
    return found


def run_case(starter: str, name: str, receiver: str, moment: str) -> list:
    """Runs a case; returns its row of the table."""
    num_ranks = STARTERS[starter]
    with tempfile.TemporaryDirectory() as folder:
        toy.write_dataset(Path(folder))
        with Training(Path(folder), starter, *SHORT, **MOMENTS[moment]) as training:
            if moment == "start":
                time.sleep(4)
            elif moment == "spawn":
                training.wait_until_spawned(num_ranks)
            else:
                what = moment.split()[0 if "save" in moment else -1]
                training.wait_until(what, 1 if what == "save" else num_ranks)
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
            all_said = training.said()
            saved = training.saved()
        said = [
            x
            for x in all_said.splitlines()
            if any(y in x for y in ("topped by", "lost ", "was killed"))
        ]
        noise = all_said.count("Traceback")
        codes = " ".join(map(str, codes))
        equal = _resumes_equal(Path(folder), starter)
        return [seconds, codes, saved, equal, noise, " | ".join(said)[-110:]]


def _resumes_equal(folder: Path, starter: str) -> str:
    """Resumes a training, and compares it with one that nobody stopped."""
    found = []
    for arguments in (["--resume", *SHORT], [*SHORT, f"train.output_dir={folder / 'whole'}"]):
        with Training(folder, starter, *arguments, STARTS_TRAIN="0") as training:
            codes = training.wait(300)
            if any(codes):
                return f"code {codes}: {training.said()[-600:]}"
    for output_dir in ("output", "whole"):
        found.append(torch.load(folder / output_dir / "model_final.pth"))
    try:
        toy.assert_equal(*found)
    except AssertionError as error:
        return f"no {error}"
    iterations = [
        [json.loads(line)["iteration"] for line in (folder / x / "metrics.json").open()]
        for x in ("output", "whole")
    ]
    return "yes" if iterations[0] == iterations[1] else f"metrics.json: {iterations}"


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
    headers = ["starter", "signal", "receiver", "moment", "seconds", "code", "saved"]
    headers += ["resumed equal", "tracebacks", "said"]
    print(tabulate(rows, headers=headers, floatfmt=".1f"))


if __name__ == "__main__":
    main()
