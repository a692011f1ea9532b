"""Random changes of a data set; ``python -m tests.data.fuzz`` tries 500."""

import pytest

from tests.data.cases import Sample
from tests.data.fuzz import Invalid, read_strictly, try_one


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_every_change_comes_to_a_sentence_a_warning_or_the_right_boxes(tmp_path, first):
    results = [try_one(tmp_path, seed) for seed in range(first, first + 10)]
    assert not [fault for _, fault in results if fault]


def test_the_oracle_reads_the_unchanged_set_and_refuses_a_changed_one(tmp_path):
    sample = Sample(tmp_path / "good").write()
    truth = read_strictly(sample)
    assert sum(map(len, truth.values())) == len(sample.content["train"]["annotations"])
    bad = Sample(tmp_path / "bad")
    bad.content["val"]["annotations"][0]["bbox"][2] = -1
    with pytest.raises(Invalid, match="box"):
        read_strictly(bad.write())
