import itertools
import logging

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from atss_d2.engine.train_loader import (
    ResumableTrainingSampler,
    build_train_loader,
    instantiate_train_loader,
)


def take(iterable, num: int) -> list:
    return list(itertools.islice(iterable, num))


def batches(sampler: ResumableTrainingSampler, batch_size: int, num: int) -> list[list[int]]:
    indices = take(sampler, num * batch_size)
    return [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]


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


# ResumableTrainingSampler


@given(
    size=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    skip=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_without_groups_it_is_detectron2s_stream(size, batch_size, skip, seed):
    sampler = ResumableTrainingSampler(size, batch_size=batch_size, skip_batches=skip, seed=seed)
    whole = take(TrainingSampler(size, seed=seed), (skip + 6) * batch_size)
    assert take(sampler, 6 * batch_size) == whole[skip * batch_size :]


@given(
    groups=st.lists(st.integers(0, 2), min_size=1, max_size=12),
    batch_size=st.integers(1, 5),
    skip=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_batches_of_one_group_and_their_tail(groups, batch_size, skip, seed):
    kwargs = dict(batch_size=batch_size, groups=groups, seed=seed)
    whole = batches(ResumableTrainingSampler(len(groups), **kwargs), batch_size, skip + 6)
    assert all(len({groups[i] for i in batch}) == 1 for batch in whole)
    tail = ResumableTrainingSampler(len(groups), skip_batches=skip, **kwargs)
    assert batches(tail, batch_size, 6) == whole[skip:]
    assert batches(tail, batch_size, 6) == whole[skip:]  # every iterator begins there anew


def test_every_image_comes_equally_often_in_the_long_run():
    groups = [0] * 7 + [1]
    sampler = ResumableTrainingSampler(8, batch_size=3, groups=groups, seed=0)
    counts = [take(sampler, 240).count(i) for i in range(8)]
    # 30 epochs, less what waits for a full batch.
    assert min(counts) >= 27
    assert max(counts) <= 31


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
def test_each_of_two_processes_loads_its_part(monkeypatch, size):
    monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        cfg = loader_cfg(**{"total_batch_size": None, "aspect_ratio_grouping": False, **size})
        parts.append(names(instantiate_train_loader(cfg, seed=5, start_iter=3), 5))
    as_rank(monkeypatch, 0, 1)
    whole = take(TrainingSampler(11, seed=5), 4 * 8)
    for i in range(5):  # together they are the batch of one process
        both = [int(name) for part in parts for name in part[i]]
        assert sorted(both) == sorted(whole[4 * (i + 3) : 4 * (i + 4)])


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


def test_without_a_seed_a_resumed_order_is_new(caplog):
    with caplog.at_level(logging.WARNING):
        instantiate_train_loader(loader_cfg(), start_iter=0)
        assert not warnings_in(caplog)
        instantiate_train_loader(loader_cfg(), start_iter=3)
    assert "the order of images does not continue" in caplog.text


@pytest.mark.parametrize("absent", ["width", "height"])
def test_images_of_unknown_size_are_not_grouped(absent, caplog):
    dicts = make_dicts(5)
    del dicts[3][absent]
    cfg = loader_cfg()
    cfg.dataset = L(lambda: dicts)()
    loader = instantiate_train_loader(cfg, seed=5)
    assert names(loader, 4) == [
        [str(i) for i in batch]
        for batch in batches(ResumableTrainingSampler(5, batch_size=2, seed=5), 2, 4)
    ]
    assert "does not give the 'width' and 'height' of image 3" in caplog.text


def test_a_sampler_of_its_own_is_used(caplog):
    cfg = loader_cfg(
        sampler=L(TrainingSampler)(size=11, shuffle=False), aspect_ratio_grouping=False
    )
    assert names(instantiate_train_loader(cfg, seed=5, start_iter=3), 2) == [["0", "1"], ["2", "3"]]
    assert "it has a sampler of its own" in caplog.text


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
