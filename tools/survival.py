#!/usr/bin/env python
"""Kills training runs of a toy detector at random and aimed moments, and resumes them.

    python tools/survival.py --kills 200
    python tools/survival.py --kills 20 --processes 1 --seed 7 --output output/survival

A run is killed up to six times and resumed by `train_net.py --resume` until it ends. Its images are
augmented at random. All that its model_final.pth holds must then equal, bit for bit, that of a run
that nobody killed. The moments are a random time; a file that grows (a checkpoint, half of which is
written); and the point before a checkpoint, model_final.pth or last_checkpoint takes its place, or
before the evaluation writes its detections. Prints a table; exit code 1 if any run differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the toy is in tests/

import atss_d2  # noqa: F401  must be imported first: silences deprecation warnings

# isort: split
import torch
import torch.utils.tensorboard
from detectron2 import engine, evaluation  # noqa: F401

from atss_d2.commands import train
from atss_d2.commands.errors import Parser
from tests import toy

ROOT = Path(__file__).resolve().parents[1]
_KILLS_PER_RUN = 6
_TIMEOUT = 600.0
_SIGNALS = (-signal.SIGKILL, -signal.SIGXFSZ)
# Moment -> the file at whose writing the process is killed; None: see `Runs.deaths`.
MOMENTS = {
    "random time": None,
    "growing file": None,
    "first checkpoint": "model_0000003.pth",
    "later checkpoint": "model_0000007.pth",
    "last checkpoint": "model_0000011.pth",
    "model_final.pth": "model_final.pth",
    "last_checkpoint": "last_checkpoint",
    "evaluation": "coco_instances_results.json",
}


def get_parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="at least so many (%(default)s)")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="of a run (default: 1 2)"
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[0, 2], help="of a loader (default: 0 2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/survival"), help="a folder")
    return parser


@dataclass
class Runs:
    """Runs with one number of processes and of workers."""

    folder: Path
    processes: int
    workers: int
    rng: random.Random
    kills: Counter = field(default_factory=Counter)
    num_resumes: int = 0
    num_runs: int = 0
    problems: list[str] = field(default_factory=list)

    def start_reference(self) -> None:
        """Runs once without a kill."""
        self.folder.mkdir(parents=True)
        start = time.perf_counter()
        code, log = self.run("whole", {})
        self.seconds = time.perf_counter() - start
        if code:
            raise RuntimeError(f"the run without kills failed: {log.read_text()[-2000:]}")
        self.expected = torch.load(self.folder / "whole" / "model_final.pth")
        self.file_size = (self.folder / "whole" / "model_final.pth").stat().st_size

    def run(self, name: str, death: dict[str, str], *, resume: bool = False) -> tuple[int, Path]:
        """Starts ``train_net.py`` once; returns its exit code and the file of its output."""
        log = self.folder / f"{name}.log"
        config = self.folder / f"{name}.py"
        overrides = {"dataloader.train.num_workers": self.workers}
        config.write_text(
            "from tests import toy\n\n"
            f"_cfg = toy.config({str(self.folder / name)!r}, is_augmented=True, **{overrides})\n"
            '_cfg.model.backbone.norm = "GN"\n_cfg.train.ema.enabled = True\n'
            f"{', '.join(toy.KEYS)} = (_cfg[key] for key in toy.KEYS)\n"
        )
        arguments = ["--config-file", str(config), "--num-gpus", str(self.processes)]
        arguments += ["--resume"] * resume
        after = float(death.get("after", _TIMEOUT))
        environment = {key: value for key, value in death.items() if key != "after"}
        if self.processes == 1:  # saves the seconds of the imports
            return _run_in_fork(arguments, environment, log, after), log
        command = [sys.executable, str(ROOT / "train_net.py"), *arguments]
        with log.open("w") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            )
        try:
            code = process.wait(after)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):  # all, as if the machine had failed
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # The launcher ends with 1 or so if one of its processes is killed.
        return (-signal.SIGKILL if code and environment else code), log

    def death(self) -> tuple[str, dict[str, str]]:
        """Draws a moment; returns its name, and how it is brought about."""
        # Several random times for each aimed moment.
        moment = self.rng.choices(list(MOMENTS), [3, *[1] * (len(MOMENTS) - 1)])[0]
        if moment == "random time":
            return moment, {"after": str(self.rng.uniform(0, self.seconds))}
        if moment == "growing file":
            limit = self.rng.randrange(self.file_size // 2, self.file_size)
            return moment, {"TOY_FILE_LIMIT": str(limit)}
        return moment, {"TOY_KILL_WRITING": MOMENTS[moment]}

    def kill_one_run(self) -> None:
        """Kills a run several times, resumes it until it ends, and compares."""
        name = f"run{self.num_runs}"
        self.num_runs += 1
        history = []
        for num_kills in range(_KILLS_PER_RUN + 1):
            moment, death = self.death() if num_kills < _KILLS_PER_RUN else ("", {})
            # The limit on file sizes is meant for checkpoints.
            (self.folder / name / "log.txt").unlink(missing_ok=True)
            code, log = self.run(name, death, resume=num_kills > 0)
            self.num_resumes += num_kills > 0
            history.append(f"{moment or 'to the end'}: {code}")
            if code == 0 and moment != "random time":
                break  # the file was not written any more, or there was no death
            if code in _SIGNALS:
                self.kills[moment] += 1
            elif code:
                self.problems.append(f"{name} ({'; '.join(history)}): {log.read_text()[-500:]}")
                return
        try:
            toy.assert_equal(torch.load(self.folder / name / "model_final.pth"), self.expected)
        except (AssertionError, OSError) as error:
            self.problems.append(f"{name} ({'; '.join(history)}): differs {error}")
        else:
            shutil.rmtree(self.folder / name)


def _run_in_fork(arguments: list[str], environment: dict[str, str], log: Path, after: float) -> int:
    child = os.fork()
    if not child:
        _execute(arguments, environment, log)
    deadline = time.perf_counter() + after
    while time.perf_counter() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _execute(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    """Is the process of a command; never returns."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    code = 1
    try:
        os.environ.update(environment)
        toy.prepare_death()
        code = train.main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code or 0)


def print_table(groups: list[Runs]) -> None:
    """Prints what happened."""
    print("\n| processes | workers | kills | resumes | runs | equal bit for bit |")
    print("|---|---|---|---|---|---|")
    for g in groups:
        equal = g.num_runs - len(g.problems)
        kills = sum(g.kills.values())
        print(
            f"| {g.processes} | {g.workers} | {kills} | {g.num_resumes} | {g.num_runs} | {equal} |"
        )
    print("\n| killed at | times |\n|---|---|")
    for moment in MOMENTS:
        print(f"| {moment} | {sum(g.kills[moment] for g in groups)} |")
    for g in groups:
        for problem in g.problems:
            print(f"\n{g.folder}: {problem}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = get_parser().parse_args(argv)
    if args.output.exists():
        get_parser().error(f"'{args.output}' exists: remove it, or give another --output")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    data = args.output.resolve() / "data"
    data.mkdir(parents=True)
    toy.write_dataset(data)
    rng = random.Random(args.seed)
    groups = [
        Runs(args.output.resolve() / f"{processes}x{workers}", processes, workers, rng)
        for processes in args.processes
        for workers in args.workers
    ]
    # Several processes do not start by a fork, and take ten times as long.
    weights = [1 / group.processes**2 for group in groups]
    for group, weight in zip(groups, weights):
        group.start_reference()
        share = args.kills * weight / sum(weights)
        while sum(group.kills.values()) < share and len(group.problems) < 5:
            group.kill_one_run()
            print(
                f"{group.processes} processes, {group.workers} workers: "
                f"{sum(group.kills.values())} kills, {len(group.problems)} problems",
                flush=True,
            )
    print_table(groups)
    return int(any(group.problems for group in groups))


if __name__ == "__main__":
    sys.exit(main())
