"""What is random in a sample follows from the seed, the epoch and the image."""

import contextlib
import pickle
import random

import numpy as np
import pytest
import torch

from atss_d2.data import DataError
from atss_d2.data.samples import SeededSamples
from atss_d2.data.seeding import seed_generators, seeded


def draws() -> tuple:
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002


def mapper(element: dict) -> dict:
    return {**element, "draws": draws()}


def make_dicts(num: int = 6) -> list[dict]:
    return [{"file_name": f"{i}.png", "image_id": 100 + i} for i in range(num)]


def samples(mapper=mapper, **kwargs) -> SeededSamples:
    return SeededSamples(make_dicts(), mapper, **{"seed": 3, **kwargs})


class Choosy:
    """Fails for some images."""

    def __init__(self, bad, error=None) -> None:
        self.bad, self.error = bad, error

    def __call__(self, element: dict):
        if element["file_name"] in self.bad:
            if self.error is not None:
                raise self.error
            return None
        return mapper(element)


def test_equal_numbers_give_equal_draws():
    found = set()
    for numbers in [(0,), (1,), (0, 1), (1, 0), (0, 0, 1), (2**40, 1)]:
        seed_generators(*numbers)
        first = draws()
        seed_generators(*numbers, devices=True)
        assert draws() == first
        found.add(first)
    assert len(found) == 6
    assert all(len(set(column)) == 6 for column in zip(*found))


def test_the_generators_of_the_process_are_untouched():
    seed_generators(1)
    expected = [draws() for _ in range(2)]
    seed_generators(1)
    first = draws()
    with seeded(2):
        draws()
    with contextlib.suppress(KeyError), seeded(2):
        raise KeyError
    samples()[0]
    assert [first, draws()] == expected


def test_a_sample_follows_from_seed_epoch_and_index():
    one, other = samples(), pickle.loads(pickle.dumps(samples()))  # as in a spawned worker
    assert [one[key].item for key in (3, 9, 0)] == [other[key].item for key in (3, 9, 0)]
    keys = range(12)  # two epochs
    assert len({one[key].item["draws"] for key in keys}) == 12
    assert [one[key].item["image_id"] for key in keys] == [100 + key % 6 for key in keys]
    one.seed = 4
    assert all(one[key].item["draws"] != other[key].item["draws"] for key in keys)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            ValueError("no\ngood"),
            "the image '2.png' (image_id 102) cannot be used: ValueError: no good",
        ),
        (AssertionError(), "the image '2.png' (image_id 102) cannot be used: AssertionError"),
        (DataError("'2.png' is broken"), "'2.png' is broken"),
    ],
)
def test_a_bad_image_is_a_sentence(error, sentence):
    sample = samples(Choosy({"2.png"}, error))[8]
    assert sample.item is None
    (problem,) = sample.problems
    assert problem.file_name == "2.png"
    assert problem.sentence == sentence
    assert "Traceback" in problem.details


@pytest.mark.parametrize("error", [None, ValueError("bad")], ids=["None", "error"])
def test_a_replacement_follows_from_the_same_numbers(error):
    groups = [0, 1, 0, 1, 0, 1]
    choosy = Choosy({"0.png", "2.png"}, error)
    one, other = (samples(choosy, skips_bad=True, groups=groups) for _ in range(2))
    found = [one[key] for key in range(0, 600, 6)]
    assert {sample.item["file_name"] for sample in found} == {"4.png"}  # the other one of group 0
    assert len({sample.item["draws"] for sample in found}) == 100
    assert [other[key].item for key in range(0, 600, 6)] == [sample.item for sample in found]
    bad = {problem.file_name for sample in found for problem in sample.problems}
    assert bad == ({"0.png", "2.png"} if error else set())
    assert one[1].item["file_name"] == "1.png"


def test_if_none_can_be_used_it_gives_up():
    names = {f"{i}.png" for i in range(6)}
    assert samples(Choosy(names), skips_bad=True)[0] == (None, ())
    assert len(samples(Choosy(names, ValueError("bad")), skips_bad=True)[0].problems) == 6
