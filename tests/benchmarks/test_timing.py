"""Races, on a clock that the contestants turn themselves."""

import gc

import pytest

from benchmarks.settings import Settings
from benchmarks.timing import Contestant, quartiles, race


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def contestant(self, name, *seconds, prepare=None):
        """Takes these seconds, call by call; the last of them from then on."""
        left = list(seconds)

        def run():
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        def wait():
            self.now += prepare

        return Contestant(name, run, None if prepare is None else wait)


def test_contestants_take_turns_there_and_back():
    clock = Clock()
    settings = Settings(quick=True, seconds=0, min_rounds=4)
    samples = race(
        [clock.contestant("a", 1.0), clock.contestant("b", 2.0), clock.contestant("c", 3.0)],
        settings,
        clock=clock,
    )
    assert samples == {"a": [1.0] * 4, "b": [2.0] * 4, "c": [3.0] * 4}
    assert clock.log[:3] == ["a", "b", "c"]  # warm up
    assert clock.log[3:] == ["a", "b", "c", "c", "b", "a"] * 2


def test_a_race_lasts_for_its_time():
    clock = Clock()
    # 3 s to warm up, until one second is over for each; then 3 s a round, of 10 s
    samples = race(
        [clock.contestant("a", 1.0), clock.contestant("b", 2.0)],
        Settings(seconds=10, min_rounds=2),
        clock=clock,
    )
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4}


def test_the_first_calls_do_not_count():
    clock = Clock()
    contestant = clock.contestant("a", 0.3, 0.2, 0.1, 0.05)
    samples = race([contestant], Settings(seconds=0, min_rounds=3), clock=clock)
    assert samples == {"a": pytest.approx([0.05] * 3)}


def test_fast_ones_are_repeated_and_give_their_mean():
    clock = Clock()
    # the least of three warm-up calls decides: 2 calls in 20 ms
    fast = clock.contestant("fast", 0.009, 0.009, 0.009, 0.004, 0.006, 0.010)
    slow = clock.contestant("slow", 0.05)
    samples = race([fast, slow], Settings(seconds=0, min_rounds=2), clock=clock)
    assert samples["fast"] == pytest.approx([0.005, 0.010])
    assert clock.log[6:] == ["fast", "fast", "slow", "slow", "fast", "fast"]


def test_preparation_is_not_timed():
    clock = Clock()
    contestant = clock.contestant("a", 0.5, prepare=7.0)
    samples = race([contestant], Settings(seconds=0, min_rounds=2), clock=clock)
    assert samples == {"a": [0.5, 0.5]}


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_within_a_turn(enabled):
    states = []
    (gc.enable if enabled else gc.disable)()
    try:
        race(
            [Contestant("a", lambda: states.append(gc.isenabled()))],
            Settings(quick=True, seconds=0, min_rounds=2),
        )
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
    assert states[1:] == [False, False]  # the first one warms up


def test_names_must_differ():
    contestants = [Contestant("a", lambda: None), Contestant("a", lambda: None)]
    with pytest.raises(ValueError, match="different names"):
        race(contestants, Settings(quick=True))


def test_quartiles():
    assert quartiles([5.0]) == (5.0, 5.0)
    assert quartiles([4.0, 0.0, 2.0, 1.0, 3.0]) == (1.0, 3.0)
