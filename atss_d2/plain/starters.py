"""Finds out which program has started this process, and which of several processes it is.

torchrun and srun start every process themselves and describe it in environment variables. Without
them, the flags of Detectron2 apply, and the command starts the processes of its machine.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import NamedTuple

# Slurm's numbers of steps that are shells, not tasks of srun: sbatch's script and salloc's prompt.
_FIRST_SHELL_STEP = 4294967290
_DEFAULT_PORT = 29500  # torch's


class Place(NamedTuple):
    """Which of several processes this is, and where they meet.

    Attributes:
        starter: ``"torchrun"``, ``"srun"`` or ``"atss-d2"``, which is this command with flags.
        rank: Of ``world_size`` processes on all machines.
        local_rank: Of ``local_size`` processes on this machine.
        host: Machine of the store where the processes meet; ``""`` if ``url`` says it.
        port: Port of the store.
        url: An ``init_method`` of torch, as for a shared file.
    """

    starter: str
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    host: str = ""
    port: int = 0
    url: str = ""

    @property
    def machine(self) -> int:
        """The number of this machine."""
        return self.rank // self.local_size

    @property
    def num_machines(self) -> int:
        """The number of machines."""
        return self.world_size // self.local_size


def find_place(args: argparse.Namespace, env: Mapping[str, str]) -> Place | None:
    """Returns the place that torchrun or srun gives this process; None if neither started it.

    Args:
        args: The command line. Flags that were not given are None.
        env: The environment.

    Raises:
        ValueError: Flags contradict the environment, or it lacks a variable.
    """
    place = _of_torchrun(env)
    if place is None and args.num_machines is None and args.machine_rank is None:
        place = _of_srun(env)
    if place is None:
        return None
    for flag, given, found in (
        ("--num-gpus", args.num_gpus, place.local_size),
        ("--num-machines", args.num_machines, place.num_machines),
        ("--machine-rank", args.machine_rank, place.machine),
    ):
        if given is not None and given != found:
            raise ValueError(
                f"{flag} {given} contradicts {place.starter}, which started {place.world_size} "
                f"processes, {place.local_size} on each machine: leave the flag out"
            )
    if args.dist_url != "auto":
        raise ValueError(
            f"--dist-url {args.dist_url} is not used under {place.starter}, which says itself "
            "where processes meet: leave the flag out"
        )
    return place


def is_restart(env: Mapping[str, str]) -> bool:
    """Returns whether torchrun has restarted this process after a failure, or SLURM the job."""
    names = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(env.get(name, "").isdigit() and int(env[name]) > 0 for name in names)


def _of_torchrun(env: Mapping[str, str]) -> Place | None:
    if "RANK" not in env or "WORLD_SIZE" not in env:
        return None
    if "LOCAL_RANK" not in env:
        if _number(env, "WORLD_SIZE") == 1 or "SLURM_STEP_ID" in env:
            return None
        raise ValueError(
            "RANK and WORLD_SIZE are set, but not LOCAL_RANK: start with torchrun, which sets all "
            "three, or unset them"
        )
    world_size = _number(env, "WORLD_SIZE")
    local_size = _number(env, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in env else world_size
    if world_size > 1 and not ("MASTER_ADDR" in env and "MASTER_PORT" in env):
        raise ValueError(
            "RANK is set, but not MASTER_ADDR and MASTER_PORT: start with torchrun, or set them to "
            "a host and a free port of the first machine"
        )
    place = Place(
        starter="torchrun",
        rank=_number(env, "RANK"),
        world_size=world_size,
        local_rank=_number(env, "LOCAL_RANK"),
        local_size=local_size,
        host=env.get("MASTER_ADDR", ""),
        port=_number(env, "MASTER_PORT") if "MASTER_PORT" in env else 0,
    )
    return _checked(place)


def _of_srun(env: Mapping[str, str]) -> Place | None:
    step = env.get("SLURM_STEP_ID") or ("0" if "SLURM_STEP_NODELIST" in env else "")
    is_task = step.isdigit() and int(step) < _FIRST_SHELL_STEP
    if not is_task or "SLURM_PROCID" not in env or "SLURM_LOCALID" not in env:
        return None
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    world_size = _number(env, tasks, 1)
    if world_size == 1:
        return None
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    if not nodes and "MASTER_ADDR" not in env:
        raise ValueError("srun does not say its machines: set MASTER_ADDR to the first of them")
    if "MASTER_PORT" in env:
        port = _number(env, "MASTER_PORT")
    else:  # below the ports that systems give to outgoing connections
        port = 15000 + (_number(env, "SLURM_JOB_ID", 0) * 7 + int(step)) % 15000
    place = Place(
        starter="srun",
        rank=_number(env, "SLURM_PROCID"),
        world_size=world_size,
        local_rank=_number(env, "SLURM_LOCALID"),
        local_size=_tasks_of_machine(env, world_size),
        host=env.get("MASTER_ADDR") or first_host(nodes),
        port=port,
    )
    return _checked(place)


def _tasks_of_machine(env: Mapping[str, str], world_size: int) -> int:
    """Returns the number of tasks on each machine."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):  # "2(x3),1" is 2, 2, 2, 1
        found = re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get(name, ""))
        counts = [int(count) for count, times in found for _ in range(int(times or 1))]
        if sum(counts) != world_size:  # the job's, not the step's
            continue
        if len(set(counts)) > 1:
            raise ValueError(
                f"srun started different numbers of processes on the machines "
                f"({', '.join(map(str, counts))}): give --ntasks-per-node"
            )
        return counts[0]
    if "SLURM_NTASKS_PER_NODE" in env:
        return _number(env, "SLURM_NTASKS_PER_NODE")
    num_machines = _number(env, "SLURM_STEP_NUM_NODES", _number(env, "SLURM_NNODES", 1))
    return max(world_size // num_machines, 1)


def first_host(nodes: str) -> str:
    """Returns the first host of Slurm's list: ``"gpu007"`` of ``"gpu[007-012,020],login1"``."""
    host = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes).group()
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", host)


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name, "")
    if not value.isdigit():
        if default is not None:
            return default
        raise ValueError(f"the environment variable {name} must be a number, got '{value}'")
    return int(value)


def _checked(place: Place) -> Place:
    if place.world_size % place.local_size or place.rank >= place.world_size:
        raise ValueError(
            f"{place.starter} started {place.world_size} processes, {place.local_size} of them on "
            "this machine: every machine needs the same number"
        )
    if place.rank % place.local_size != place.local_rank:
        raise ValueError(
            f"{place.starter} gave process {place.rank} the place {place.local_rank} on its "
            f"machine, where {place.rank % place.local_size} is needed: neighbors must be on the "
            "same machine (srun --distribution=block)"
        )
    return place
