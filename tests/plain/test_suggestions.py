import pytest

from atss_d2.plain.suggestions import did_you_mean

KNOWN = ["train.max_iter", "train.seed", "model.num_classes", "train.max_iters"]


@pytest.mark.parametrize(
    ("word", "options", "expected"),
    [
        ("train.max_itr", {"num": 1}, "did you mean train.max_iter?"),
        ("train.max_itr", {"cutoff": 0.9}, "did you mean train.max_iter, train.max_iters?"),
        ("?", {}, ""),
        ("?", {"otherwise": "--help lists them"}, "--help lists them"),
    ],
)
def test_the_nearest_names_come_first(word, options, expected):
    assert did_you_mean(word, iter(KNOWN), **options) == expected
