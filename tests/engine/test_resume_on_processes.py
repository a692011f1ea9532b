"""Interrupted runs go on with the same, or another, number of processes."""

import functools
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.engine import launch
from detectron2.utils import comm

from atss_d2.engine import leave_process_group
from tests import toy

MAX_ITER = 6
FAIL_AT = 3  # after the checkpoint of iteration 1
OVERRIDES = {
    "train.max_iter": MAX_ITER,
    "train.checkpointer.period": 2,
    "train.eval_period": 0,
    "train.ema": {"enabled": True, "decay": 0.9},
    "model.backbone.norm": "FrozenBN",  # no statistics of a process's images
    "dataloader.train.total_batch_size": 4,
}


def make_run(folder: Path) -> toy.Run:
    return toy.Run(folder, is_augmented=True, **OVERRIDES)


def train_on_each(folder: Path) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    make_run(folder / "whole").train()
    run = make_run(folder / "resumed").train(fail_at=FAIL_AT)
    comm.synchronize()
    if comm.is_main_process():
        shutil.copytree(folder / "resumed", folder / "on_one")
    run.cfg.dataloader.train.num_workers = comm.get_rank()  # any number in any process
    run.train(resume=True, seed=1)
    leave_process_group()


@pytest.fixture(scope="module")
def folder(toy_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    for name in ("whole", "resumed", "alone"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():  # copies of this process do not import everything again
            forked = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
            patch.setattr(torch.multiprocessing, "start_processes", forked)
        launch(train_on_each, 2, dist_url="auto", args=(folder,))
    return folder


def test_resumed_on_two_it_equals_the_uninterrupted_run(folder):
    whole, resumed = make_run(folder / "whole"), make_run(folder / "resumed")
    toy.assert_equal(resumed.checkpoint(), whole.checkpoint())
    for rank in range(2):
        seen = [toy.seen_images(run.folder / "seen", rank) for run in (whole, resumed)]
        assert seen[0] == seen[1]


def test_resumed_on_one_it_goes_on_as_on_two(folder):
    run = make_run(folder / "on_one").forget().train(resume=True, seed=1)
    assert list(run.seen) == list(range(2, MAX_ITER))
    assert_trained_as_on_two(run, make_run(folder / "whole"))


def test_one_process_trains_as_two(folder):
    run = make_run(folder / "alone").train()
    assert list(run.seen) == list(range(MAX_ITER))
    assert_trained_as_on_two(run, make_run(folder / "whole"))


def assert_trained_as_on_two(run: toy.Run, whole: toy.Run) -> None:
    parts = [toy.seen_images(whole.folder / "seen", rank) for rank in range(2)]
    for i, names in run.seen.items():
        assert [names[0::2], names[1::2]] == [part[i] for part in parts]
    for part in ("model", "trained_model"):
        states = (r.checkpoint()[part] for r in (run, whole))
        torch.testing.assert_close(*states, rtol=1e-3, atol=1e-5)
