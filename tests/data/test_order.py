"""The order of training images: Detectron2's, continued at any batch, shared by processes."""

import itertools
from collections import defaultdict

import pytest
import torch
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from hypothesis import given
from hypothesis import strategies as st

from atss_d2.data.order import Epochs, GlobalBatches, SamplerBatches, epochs_of

SIZES, SEEDS = st.integers(1, 12), st.integers(0, 2**31)
GROUPS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
BATCH_SIZES = st.integers(1, 14)  # also more than there are images
STARTS = st.integers(0, 40)


def take(iterable, num: int) -> list:
    return list(itertools.islice(iterable, num))


def flat(batches) -> list:
    return list(itertools.chain.from_iterable(batches))


def indices(batches, num: int) -> list[list[int]]:
    size = batches._epochs.size
    return [[key % size for key in batch] for batch in take(batches, num)]


def walk(stream, groups, batch_size):
    """Cuts a stream of images into batches one image at a time."""
    waiting = defaultdict(list)
    for index in stream:
        waiting[groups[index]].append(index)
        if len(waiting[groups[index]]) == batch_size:
            yield waiting.pop(groups[index])


@given(size=SIZES, batch_size=BATCH_SIZES, start=STARTS, seed=SEEDS)
def test_without_groups_it_is_detectron2s_stream(size, batch_size, start, seed):
    batches = GlobalBatches(Epochs(size), batch_size=batch_size, seed=seed, start=start)
    whole = take(TrainingSampler(size, seed=seed), (start + 6) * batch_size)
    found = indices(batches, 6)
    assert all(len(batch) == batch_size for batch in found)
    assert flat(found) == whole[start * batch_size :]


@given(groups=GROUPS, batch_size=BATCH_SIZES, start=STARTS, seed=SEEDS)
def test_with_groups_it_equals_a_walk(groups, batch_size, start, seed):
    size = len(groups)
    batches = GlobalBatches(
        Epochs(size), batch_size=batch_size, seed=seed, start=start, groups=groups
    )
    whole = walk(TrainingSampler(size, seed=seed), groups, batch_size)
    expected = take(whole, start + 6)[start:]
    assert indices(batches, 6) == expected
    assert indices(batches, 6) == expected  # every iterator begins there anew


@given(groups=GROUPS, batch_size=st.integers(1, 4), start=STARTS, seed=SEEDS)
def test_processes_share_the_batches_of_one(groups, batch_size, start, seed):
    def batches(rank, world_size):
        return GlobalBatches(
            Epochs(len(groups)),
            batch_size=4 * batch_size,
            seed=seed,
            groups=groups,
            start=start,
            rank=rank,
            world_size=world_size,
        )

    whole = take(batches(0, 1), 5)
    for world_size in (2, 4):
        parts = [take(batches(rank, world_size), 5) for rank in range(world_size)]
        for i, batch in enumerate(whole):
            assert [part[i] for part in parts] == [batch[r::world_size] for r in range(world_size)]


def test_without_groups_a_process_has_the_images_that_detectron2_gives_it(monkeypatch):
    for rank in range(2):
        batches = GlobalBatches(Epochs(7), batch_size=6, seed=3, rank=rank, world_size=2)
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
        expected = take(TrainingSampler(7, seed=3), 30)
        assert flat(indices(batches, 10)) == expected


@given(
    factors=st.lists(st.sampled_from([0.5, 1.0, 1.3, 2.7]), min_size=1, max_size=9),
    is_shuffled=st.booleans(),
    seed=SEEDS,
)
def test_other_samplers_of_detectron2(factors, is_shuffled, seed):
    factors = torch.tensor([*factors, 1.0])
    size = len(factors)
    for sampler in (
        RepeatFactorTrainingSampler(factors, shuffle=is_shuffled, seed=seed),
        RandomSubsetTrainingSampler(size, 0.5, is_shuffled, seed_shuffle=seed, seed_subset=1),
        TrainingSampler(size, shuffle=is_shuffled, seed=seed),
    ):
        epochs, own_seed = epochs_of(sampler)
        batches = GlobalBatches(epochs, batch_size=3, seed=own_seed, start=4)
        assert flat(indices(batches, 8)) == take(sampler, 36)[12:]


def test_keys_count_the_uses_of_an_image():
    factors = torch.tensor([1.0, 3.0, 2.0])
    epochs, seed = epochs_of(RepeatFactorTrainingSampler(factors, seed=5))
    keys = flat(take(GlobalBatches(epochs, batch_size=6, seed=seed), 3))
    assert len(set(keys)) == 18  # no two uses of an image have the same random numbers
    assert sorted(keys[:6]) == [0, 1, 2, 4, 5, 7]  # 3 images: use * 3 + index
    plain = flat(take(GlobalBatches(Epochs(3), batch_size=3, seed=5), 2))
    assert sorted(plain[:3]) == [0, 1, 2]
    assert sorted(plain[3:]) == [3, 4, 5]  # epoch * 3 + index


def test_a_sampler_of_somebody_else():
    class Mine(TrainingSampler):
        pass

    assert epochs_of(Mine(5, seed=0)) is None
    sampler, groups = Mine(5, seed=0), [0, 1, 0, 1, 1]
    kwargs = dict(size=5, batch_size=2, groups=groups)
    whole = take(walk(Mine(5, seed=0), groups, 2), 9)
    keys = take(SamplerBatches(sampler, **kwargs), 9)
    assert [[key % 5 for key in batch] for batch in keys] == whole
    assert len(set(flat(keys))) == 18
    assert take(SamplerBatches(sampler, start=4, **kwargs), 5) == keys[4:]


def test_every_image_comes_equally_often_in_the_long_run():
    batches = GlobalBatches(Epochs(8), batch_size=3, seed=0, groups=[0] * 7 + [1])
    found = flat(indices(batches, 80))
    counts = [found.count(i) for i in range(8)]
    # 30 epochs, less what waits for a full batch.
    assert min(counts) >= 27
    assert max(counts) <= 31


@pytest.mark.parametrize("grouped", [False, True])
def test_epochs_are_skipped_and_not_walked(grouped, monkeypatch):
    groups = [i % 3 == 0 for i in range(1000)] if grouped else None
    batches = GlobalBatches(Epochs(1000), batch_size=10, seed=0, groups=groups, start=5000)
    cut = []
    original = GlobalBatches._cut
    monkeypatch.setattr(GlobalBatches, "_cut", lambda *args: cut.append(original(*args)) or cut[-1])
    next(iter(batches))
    assert 50 <= len(cut) <= 51  # one numpy pass per epoch
    assert sum(map(len, cut)) > 5000
