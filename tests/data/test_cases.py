"""Every case of the catalogue, in check-dataset and at the start of a training."""

import re

import pytest

from tests.data.cases import CASES, STOPS, Sample
from tests.data.trying import check, start_training
from tests.data.walk_cases import walk


def test_there_are_enough():
    assert len(CASES) >= 73


@pytest.mark.parametrize("name", CASES)
def test_a_case_comes_to_what_it_must(tmp_path, name):
    case, sample = CASES[name], Sample(tmp_path / "sample")
    case.change(sample)
    sample.write()
    outcome, text, _ = check(sample)
    assert outcome == case.outcome, text
    assert re.search(case.says, text), text
    if case.trains:
        outcome, text, _ = start_training(sample)
        assert outcome == case.outcome, text
        assert re.search(case.says, text), text
        assert outcome != STOPS or "\n" not in text


@pytest.mark.parametrize("name", ["box NaN", "annotation id 0 in val", "gray"])
def test_the_real_command_says_the_same(tmp_path, name):
    """``python -m tests.data.walk_cases`` does it for all."""
    outcome, fault, said = walk(CASES[name], tmp_path)
    assert not fault, f"{outcome}: {said}"
