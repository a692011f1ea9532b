"""Trainings as they are started and stopped, in processes of their own; see tests/starts.py."""

import os
import signal
import time

import torch

from tests import starts, toy


def test_a_stop_saves_the_last_iteration_although_workers_get_the_signal(tmp_path):
    toy.write_dataset(tmp_path)
    with starts.Training(tmp_path, "alone", "dataloader.train.num_workers=1") as training:
        training.wait_until("train")
        time.sleep(0.5)
        os.killpg(training.starters[0].pid, signal.SIGTERM)  # as Ctrl-C does, and some schedulers
        assert training.wait() == [143], training.said()
        said = training.said()
        iteration = training.saved()
        assert f"Stopped by SIGTERM after iteration {iteration}, which is saved in " in said
        assert "Traceback" not in said
        last = toy.read_metrics(training.output_dir)
        assert max(last) == iteration


def test_ctrl_c_while_processes_are_started_is_one_sentence(tmp_path):
    """They were interrupted in their imports, with tracebacks and exit code 1."""
    toy.write_dataset(tmp_path)
    with starts.Training(tmp_path, "flags") as training:
        training.wait_until_spawned(2)
        os.killpg(training.starters[0].pid, signal.SIGINT)
        assert training.wait() == [130]
        sentence = "train_net.py: stopped by SIGINT before a checkpoint was saved\n"
        assert training.said() == sentence


def test_two_machines_stop_resume_and_fail_together(tmp_path):
    """As srun starts them, without a common disk: only the first one has the checkpoint."""
    toy.write_dataset(tmp_path)
    machines = [tmp_path / f"machine{rank}" for rank in range(2)]
    for machine in machines:
        machine.mkdir()
    two = {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0"}
    seen = {"TOY_SEEN": str(tmp_path / "seen"), **two}
    folder = "train.output_dir=output"
    with starts.Training(tmp_path, "srun", folder, each_cwd=machines, **seen) as training:
        training.wait_until("train", 2)
        os.kill(training.ranks()[1], signal.SIGUSR1)
        assert training.wait() == [138, 138], training.said()
        assert training.said().count("Stopped by SIGUSR1 after iteration") == 1
    assert not list(machines[1].glob("output/*.pth"))
    (checkpoint,) = machines[0].glob("output/model_*.pth")
    iteration = torch.load(checkpoint)["iteration"]
    for rank in range(2):
        assert max(toy.seen_images(tmp_path / "seen", rank)) == iteration
        (tmp_path / f"seen.{rank}").unlink()

    fails = [{}, {"TOY_FAIL_AT": str(iteration + 3)}]
    # The machines change places: now it is the second one that has the checkpoint.
    places = {"each_cwd": machines[::-1], "each_env": fails}
    with starts.Training(tmp_path, "srun", "--resume", folder, **places, **seen) as training:
        assert training.wait() == [1, 1], training.said()
        assert training.said().count("ToyError: in iteration") == 1
        assert "gloo" not in training.said()
        assert "Process 1 has the newest checkpoint, which is now also" in training.said()
    for rank in range(2):
        images = toy.seen_images(tmp_path / "seen", rank)
        assert list(images) == list(range(iteration + 1, iteration + 4))
