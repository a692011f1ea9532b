import itertools
import logging
import random

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import IterableDataset, Sampler

from atss_d2.config import ConfigError
from atss_d2.engine.train_loader import build_train_loader, instantiate_train_loader


def take(iterable, num: int) -> list:
    return list(itertools.islice(iterable, num))


def flat(batches) -> list:
    return list(itertools.chain.from_iterable(batches))


def make_dicts(num: int = 11, **more) -> list[dict]:
    """Every third image is a portrait; the name of an image is its number."""
    return [
        {"file_name": str(i), "width": 3 if i % 3 else 1, "height": 2, **more} for i in range(num)
    ]


def file_name(dataset_dict: dict) -> str:
    return dataset_dict["file_name"]


class Recorder:
    """A mapper that Detectron2's grouping can work with."""

    def __call__(self, dataset_dict: dict) -> dict:
        return dataset_dict


def loader_cfg(**kwargs):
    arguments = dict(dataset=L(make_dicts)(), mapper=Recorder(), total_batch_size=2, num_workers=0)
    return L(build_train_loader)(**{**arguments, **kwargs})


def names(loader, num: int) -> list[list[str]]:
    return [[file_name(d) for d in batch] for batch in take(loader, num)]


def warnings_in(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def as_rank(monkeypatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


# instantiate_train_loader


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on few cores
@pytest.mark.parametrize(("grouped", "num_workers"), [(True, 0), (False, 2), (True, 3)])
def test_same_batches_as_detectron2(grouped, num_workers):
    cfg = loader_cfg(num_workers=num_workers, aspect_ratio_grouping=grouped)
    dicts = make_dicts()
    expected = build_detection_train_loader(
        dicts,
        mapper=Recorder(),
        sampler=TrainingSampler(len(dicts), seed=5),
        total_batch_size=2,
        aspect_ratio_grouping=grouped,
    )
    assert names(instantiate_train_loader(cfg, seed=5), 20) == names(expected, 20)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on few cores
@pytest.mark.parametrize(("grouped", "num_workers"), [(True, 0), (False, 2), (True, 3)])
def test_goes_on_where_it_stopped(grouped, num_workers):
    whole = instantiate_train_loader(loader_cfg(aspect_ratio_grouping=grouped), seed=5)
    cfg = loader_cfg(num_workers=num_workers, aspect_ratio_grouping=grouped)
    tail = instantiate_train_loader(cfg, seed=5, start_iter=7)
    assert names(tail, 9) == names(whole, 16)[7:]


def test_skipped_images_are_not_loaded():
    loaded = []
    cfg = loader_cfg()
    cfg.mapper = lambda d: loaded.append(d["file_name"]) or d
    batch = names(instantiate_train_loader(cfg, seed=5, start_iter=1000), 1)[0]
    assert loaded == batch


@pytest.mark.parametrize("size", [dict(total_batch_size=4), dict(single_gpu_batch_size=2)])
@pytest.mark.parametrize("grouped", [False, True])
def test_processes_load_parts_of_the_batches_of_one(monkeypatch, size, grouped):
    def batches(rank, world_size, **size):
        as_rank(monkeypatch, rank, world_size)
        cfg = loader_cfg(**{"total_batch_size": None, "aspect_ratio_grouping": grouped, **size})
        return names(instantiate_train_loader(cfg, seed=5, start_iter=3), 5)

    parts = [batches(rank, 2, **size) for rank in range(2)]
    whole = batches(0, 1, total_batch_size=4)
    assert [[*a, *b] for a, b in zip(*parts)] == [[*x[0::2], *x[1::2]] for x in whole]


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (dict(total_batch_size=3), "total batch size 3 .* divisible .* processes, 2"),
        (dict(total_batch_size=None), "total batch size None"),
        (dict(total_batch_size=2, single_gpu_batch_size=1), "give only one"),
    ],
)
def test_wrong_batch_sizes(monkeypatch, size, problem):
    as_rank(monkeypatch, 1, 2)
    with pytest.raises(ConfigError, match=problem):
        instantiate_train_loader(loader_cfg(**size), seed=5)


class Drawing:
    """A mapper with numbers of all generators."""

    def __call__(self, dataset_dict: dict) -> dict:
        numbers = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
        return {**dataset_dict, "numbers": numbers}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")  # on few cores
@pytest.mark.parametrize("kind", ["default", "own-sampler", "repeat-factors"])
def test_augmentations_do_not_depend_on_workers_or_the_start(kind):
    sampler = {
        "default": None,
        "own-sampler": L(Backwards)(),
        "repeat-factors": L(RepeatFactorTrainingSampler)(repeat_factors=torch.full((11,), 1.5)),
    }[kind]

    def samples(num_workers, start_iter):
        cfg = loader_cfg(mapper=Drawing(), num_workers=num_workers, sampler=sampler)
        loader = instantiate_train_loader(cfg, seed=5, start_iter=start_iter)
        return flat(take(loader, 16 - start_iter))

    seed_all_rng(1)
    whole = samples(0, 0)
    assert len({sample["numbers"] for sample in whole}) == 32
    state = torch.get_rng_state()
    assert samples(3, 0) == whole
    seed_all_rng(2)
    assert samples(2, 7) == whole[14:]
    assert samples(0, 7) == whole[14:]
    seed_all_rng(1)  # the draws of the model do not depend on the loader
    samples(2, 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "target",
    [
        build_detection_train_loader,
        "detectron2.data.build.build_detection_train_loader",  # a config saved yesterday
        "detectron2.data.build_detection_train_loader",
        "atss_d2.engine.train_loader.build_train_loader",  # a config saved today
    ],
)
def test_detectron2s_loader_and_names_are_resumed_too(target):
    cfg = loader_cfg()
    cfg._target_ = target
    expected = names(instantiate_train_loader(loader_cfg(), seed=5, start_iter=3), 4)
    assert names(instantiate_train_loader(cfg, seed=5, start_iter=3), 4) == expected


@pytest.mark.parametrize("absent", ["width", "height"])
def test_images_of_unknown_size_are_not_grouped(absent, caplog):
    dicts = make_dicts(5)
    del dicts[3][absent]
    cfg = loader_cfg()
    cfg.dataset = L(lambda: dicts)()
    loader = instantiate_train_loader(cfg, seed=5)
    stream = [str(i) for i in take(TrainingSampler(5, seed=5), 8)]
    assert names(loader, 4) == [stream[i : i + 2] for i in range(0, 8, 2)]
    assert "does not give the 'width' and 'height' of image 3" in caplog.text


class Backwards(Sampler):
    def __iter__(self):
        return itertools.cycle(range(10, -1, -1))


def test_samplers_continue(caplog):
    cfg = loader_cfg(
        sampler=L(TrainingSampler)(size=11, shuffle=False), aspect_ratio_grouping=False
    )
    assert names(instantiate_train_loader(cfg, seed=5, start_iter=3), 2) == [["6", "7"], ["8", "9"]]
    cfg.sampler = L(TrainingSampler)(size=11)  # draws a seed
    whole = names(instantiate_train_loader(cfg, seed=5), 9)
    assert names(instantiate_train_loader(cfg, seed=5, start_iter=3), 6) == whole[3:]
    assert not warnings_in(caplog)
    cfg.sampler = L(Backwards)()
    assert names(instantiate_train_loader(cfg, seed=5), 2) == [["10", "9"], ["8", "7"]]
    assert names(instantiate_train_loader(cfg, seed=5, start_iter=2), 1) == [["6", "5"]]
    assert "continues only if the Backwards of dataloader.train yields the same" in caplog.text


def test_a_loader_of_its_own_is_used(caplog):
    cfg = L(make_dicts)(num=2)
    assert instantiate_train_loader(cfg, seed=5) == make_dicts(2)
    assert not warnings_in(caplog)
    assert instantiate_train_loader(cfg, seed=5, start_iter=3) == make_dicts(2)
    assert "it is a loader of its own" in caplog.text


class Stream(IterableDataset):
    def __iter__(self):
        return iter(make_dicts())


def test_an_iterable_data_set_has_its_own_order(caplog):
    cfg = loader_cfg(dataset=L(Stream)(), aspect_ratio_grouping=False)
    assert names(instantiate_train_loader(cfg, seed=5), 2) == [["0", "1"], ["2", "3"]]
    assert not warnings_in(caplog)
    instantiate_train_loader(cfg, seed=5, start_iter=3)
    assert "its data set is a stream" in caplog.text


def test_without_our_trainer_it_is_detectron2s_loader():
    """As Detectron2's lazyconfig_train_net.py instantiates it."""
    cfg = loader_cfg(order_seed=5)
    assert names(instantiate(cfg), 20) == names(instantiate_train_loader(loader_cfg(), seed=5), 20)
    assert names(instantiate_train_loader(cfg, seed=6), 20) == names(instantiate(cfg), 20)
