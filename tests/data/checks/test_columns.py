"""Columns hold any value of a JSON, and files read piece by piece are those parsed at once."""

import gc
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.data import categories, json_stream
from atss_d2.data.checks import json_file
from atss_d2.data.checks.columns import Column, doubles_of
from atss_d2.data.checks.dataset import check_coco, check_coco_file
from atss_d2.data.checks.json_file import read_columns, read_json
from atss_d2.data.checks.values import is_hashable, to_boxes, to_numbers
from atss_d2.data.errors import DataError
from tests.data.cases import CASES, Sample
from tests.data.fuzz import mutate

NUMBERS = st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 1.5, -0.0, 2.0**53, 1e300])
NUMBERS |= st.sampled_from([2**53, 10**300, float("inf"), 10**400])
NUMBERS |= st.builds(float, st.just("nan"))  # as in a file, a new one each time
ANY = NUMBERS | st.none() | st.booleans() | st.sampled_from(["1", "a"]) | st.just([1])


@settings(max_examples=200, deadline=None)
@given(st.lists(NUMBERS | st.integers(-3, 3)) | st.lists(ANY), st.lists(ANY))
def test_a_column_is_the_list_of_its_values(values, known):
    column = Column(values[:3])
    column.extend(values[3:])
    assert list(map(repr, column)) == list(map(repr, values))
    np.testing.assert_array_equal(column.numbers(), to_numbers(values))
    assert column.doubles() == doubles_of(values)
    index = {x: i for i, x in enumerate(known) if is_hashable(x) and x == x}
    found = [index.get(x, -1) if is_hashable(x) else -1 for x in values]
    assert column.look_up(known).tolist() == found
    assert column.unhashable() == [i for i, x in enumerate(values) if not is_hashable(x)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(NUMBERS | ANY, min_size=3, max_size=4) | ANY))
def test_a_column_of_boxes_is_the_list_of_its_values(values):
    column = Column(values, width=4)
    assert list(map(repr, column)) == list(map(repr, values))
    is_box, expected = [np.isfinite(x).all(1) for x in (column.numbers(), to_boxes(values))]
    np.testing.assert_array_equal(is_box, expected)
    np.testing.assert_array_equal(column.numbers()[is_box], to_boxes(values)[is_box])


def both_ways(sample: Sample) -> int:
    """Compares both ways to read; returns the number of files read piece by piece."""
    num = 0
    for part in ("train", "val"):
        path = sample.json_file(part)
        try:
            pieces = read_columns(path)
        except json_stream.Unusual:
            assert "json" in {x.code for x in check_coco_file(str(path), "root").report.findings}
            continue
        num += 1
        one, other = (
            check_coco(x, str(path), "root", role=part) for x in (pieces, read_json(path))
        )
        assert repr(one) == repr(other)
    return num


def test_pieces_of_a_file_are_the_whole(tmp_path, monkeypatch):
    assert gc.isenabled()
    num = 0
    for index, case in enumerate([*CASES.values(), *range(40)]):
        sample = Sample(tmp_path / str(index))
        if isinstance(case, int):
            mutate(sample, np.random.default_rng(case))
        else:
            case.change(sample)
        monkeypatch.setattr(json_stream, "_CHUNK", (1, 7, 1 << 24)[index % 3])
        num += both_ways(sample.write())
    assert num > 400
    assert gc.isenabled()


@pytest.fixture
def huge(tmp_path, monkeypatch):
    """A sample whose training set counts as too large to be parsed at once."""
    monkeypatch.setenv("ATSS_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(json_file, "_MAX_PARSED", 1000)
    monkeypatch.setattr(json_file, "parse_json", None)  # would raise
    monkeypatch.setattr(categories, "_LARGE", 1000)
    return Sample(tmp_path / "sample").write().json_file("train")


def test_a_huge_file_is_never_parsed_at_once(huge):
    assert not check_coco_file(str(huge), "root").report.findings
    assert [x["id"] for x in categories.read_categories(str(huge))] == [3, 7]
    text = huge.read_text()
    changes = {
        text[:-9]: "ends in the middle",
        text + "1": "more than one value",
        "[" + text[1:]: "not an object of images",
        text.replace('"file_name"', "file_name", 1): "is not JSON",
        text.replace('"annotations"', '"boxes"'): "no list 'annotations'",
        json.dumps({**json.loads(text), "images": []}): "no images",
        json.dumps({**json.loads(text), "images": [1]}): "not an object with keys",
    }
    for changed, words in changes.items():
        huge.write_text(changed)
        (finding,) = check_coco_file(str(huge), "root", cache=False).report.findings
        assert finding.code == "json"
        assert words in finding.what


def test_classes_of_a_huge_file_are_remembered(huge, monkeypatch):
    first = categories.read_categories(str(huge))
    categories._raw_categories.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(categories, "read_value", None)  # would raise
        assert categories.read_categories(str(huge)) == first
    huge.write_text(huge.read_text()[:-9])
    with pytest.raises(ValueError, match="ends in the middle"):
        categories.read_categories(str(huge))
    with pytest.raises(DataError):
        json_file.read_value(huge, "categories")
