"""Which of several processes this is, by the variables of torchrun and srun, and by flags."""

import pytest

from atss_d2.commands.train import _first_place, get_parser
from atss_d2.plain.starters import find_place, first_host, is_restart

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "4000",
}
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def parse(*flags):
    return get_parser().parse_args(list(flags))


@pytest.mark.parametrize("flags", [[], ["--num-gpus", "4", "--num-machines", "2"]])
@pytest.mark.parametrize("env", [TORCHRUN, {**SRUN, **TORCHRUN}])
def test_a_place_of_torchrun(env, flags):
    place = find_place(parse(*flags), env)
    assert place == ("torchrun", 5, 8, 1, 4, "node1", 4000, "")
    assert (place.machine, place.num_machines) == (1, 2)


def test_a_place_of_srun():
    place = find_place(parse(), SRUN)
    assert place[:6] == ("srun", 5, 8, 1, 4, "gpu07")
    assert place.port == find_place(parse(), {**SRUN, "SLURM_PROCID": "1"}).port


@pytest.mark.parametrize(
    ("tasks", "size"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "8"}, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_NTASKS_PER_NODE": "2"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_NNODES": "4"}, 2),
        # Of the job, which has more than the step.
        (
            {"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_TASKS_PER_NODE": "9(x4)", "SLURM_NNODES": "4"},
            2,
        ),
    ],
)
def test_tasks_of_a_machine(tasks, size):
    env = {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", **tasks}
    assert find_place(parse(), env).local_size == size


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_ID": "4294967291"},  # the script of sbatch
        {"SLURM_STEP_ID": "4294967290"},  # the prompt of salloc
        {"SLURM_STEP_ID": "", "SLURM_STEP_NODELIST": None},
        {"SLURM_NTASKS": "1"},
        {"SLURM_PROCID": None},
    ],
)
def test_shells_of_slurm_are_no_tasks(changes):
    env = {name: value for name, value in {**SRUN, **changes}.items() if value is not None}
    assert find_place(parse(), env) is None


def test_flags_describe_machines_that_srun_starts_with_one_task_each():
    flags = ("--num-gpus", "8", "--num-machines", "8", "--machine-rank", "5")
    assert find_place(parse(*flags), SRUN) is None


@pytest.mark.parametrize(
    ("flags", "env", "message"),
    [
        (["--num-gpus", "8"], TORCHRUN, "--num-gpus 8 contradicts torchrun, .* leave the flag out"),
        (["--num-gpus", "8"], SRUN, "--num-gpus 8 contradicts srun"),
        (["--num-machines", "3"], TORCHRUN, "--num-machines 3 contradicts torchrun"),
        (["--dist-url", "tcp://a:1"], TORCHRUN, "not used under torchrun"),
        ([], {"RANK": "0", "WORLD_SIZE": "2"}, "not LOCAL_RANK: start with torchrun"),
        ([], {**TORCHRUN, "WORLD_SIZE": "two"}, "WORLD_SIZE must be a number, got 'two'"),
        ([], {**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "every machine needs the same number"),
        ([], {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "5,3"}, r"\(5, 3\): give --ntasks-per-node"),
        ([], {**SRUN, "SLURM_LOCALID": "2"}, "srun --distribution=block"),
    ],
)
def test_contradictions_are_explained(flags, env, message):
    with pytest.raises(ValueError, match=message):
        find_place(parse(*flags), env)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[007-012,020],login1", "gpu007"),
        ("rack[3,5]-node[11-12].local,x", "rack3-node11.local"),
    ],
)
def test_first_host(nodes, host):
    assert first_host(nodes) == host


def test_restarts():
    assert is_restart({"TORCHELASTIC_RESTART_COUNT": "1"})
    assert is_restart({"SLURM_RESTART_COUNT": "2"})
    assert not is_restart({"TORCHELASTIC_RESTART_COUNT": "0"})


def test_places_by_flags():
    url = ("--dist-url", "tcp://10.0.0.1:400")
    place = _first_place(
        parse("--num-gpus", "4", "--num-machines", "3", "--machine-rank", "2", *url)
    )
    assert (place.rank, place.world_size, place.host, place.port) == (8, 12, "10.0.0.1", 400)
    assert _first_place(parse()).world_size == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-gpus", "-1"], "--num-gpus must not be negative"),
        (["--num-machines", "2"], "needs --dist-url"),
        (["--num-machines", "2", "--machine-rank", "2"], "--machine-rank must be one of 0 to 1"),
        (["--num-gpus", "2", "--dist-url", "tcp://here"], "must be tcp://HOST:PORT"),
    ],
)
def test_wrong_flags_are_explained(flags, message):
    with pytest.raises(ValueError, match=message):
        _first_place(parse(*flags))
