"""Ratios, targets, tables, the JSON file, the document and the picture."""

import dataclasses
import json

import pytest

from benchmarks.document import write_document
from benchmarks.picture import plot_assignment
from benchmarks.report import case_tables, format_value, targets_table, verdict
from benchmarks.results import CaseResult, Measurement, Target, read_json, write_json

MACHINE = {
    "processor": "abacus",
    "cores": 10,
    "threads": 1,
    "memory_is_kept": False,
    "load": 0.5,
    "python": "3",
    "torch": "2",
    "torchvision": "0",
    "detectron2": "0",
    "date": "2020-02-20",
}


def measurement(**changes):
    fields = {
        "case": "nms",
        "scene": "a scene",
        "quantity": "time",
        "unit": "s",
        "samples": {"ours": [0.002, 0.001, 0.004], "theirs": [0.010, 0.012, 0.008]},
        "ours": "ours",
    }
    return Measurement(**{**fields, **changes})


def result(*measurements, quick=False, machine=MACHINE):
    return CaseResult(measurements, machine, {"quick": quick})


def test_ratios_are_of_medians():
    found = measurement()
    assert found.median("theirs") == 0.010
    assert found.ratio("theirs") == pytest.approx(5)
    assert found.ratio("ours") == 1
    assert found.spread("theirs") == pytest.approx((0.009, 0.011))
    # quartiles of ours: 1.5 and 3 ms
    assert found.ratio_spread("theirs") == pytest.approx((3, 11 / 1.5))


def test_nothing_to_compare():
    assert measurement(ours=None).ratio("theirs") is None
    zero = measurement(samples={"ours": [0.0], "theirs": [3.0]}, targets=(Target(2.0, "theirs"),))
    assert zero.ratio("theirs") is None
    assert zero.is_met(zero.targets[0])  # infinitely often


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Target(5.0, "theirs"), "met"),
        (Target(4.0, "theirs"), "met"),
        (Target(8.0, "theirs"), "falls short by 37.5 %"),
        (Target(0.002), "met"),
        (Target(0.001), "falls short by 100.0 %"),
        (Target(0.0), "falls short by 2 ms"),
    ],
)
def test_verdicts(target, text):
    found = measurement(samples={"ours": [0.002], "theirs": [0.010]}, targets=(target,))
    assert verdict(found, target) == text
    assert found.is_met(target) == (text == "met")


@pytest.mark.parametrize("changes", [{"ours": "us"}, {"targets": (Target(1.0, "nobody"),)}])
def test_unknown_contestants_are_refused(changes):
    with pytest.raises(ValueError, match="no contestant is called '(us|nobody)'"):
        measurement(**changes)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.345, "s", "2.35 s"),
        (0.0123, "s", "12.3 ms"),
        (0.9999, "s", "1000 ms"),
        (4.56e-5, "s", "45.6 µs"),
        (3e-9, "s", "0.003 µs"),
        (7.7e8, "B", "770 MB"),
        (7.02e6, "B", "7.02 MB"),
        (1.2345, "x", "1.23x"),
        (4.321, "%", "4.32 %"),
        (1234.0, "", "1234"),
        (0.0, "", "0"),
    ],
)
def test_numbers_with_units(value, unit, text):
    assert format_value(value, unit) == text


def test_tables():
    found = result(
        measurement(targets=(Target(8.0, "theirs"), Target(0.01)), notes=("a note", "a note")),
        measurement(scene="other", samples={}, ours=None, text="as it is"),
    )
    text = case_tables(found, markdown=True)
    _, _, ours, theirs, *rest = text.splitlines()
    cells = [cell.strip() for cell in ours.split("|")[1:-1]]
    assert cells == [
        "a scene", "time", "ours", "2 ms", "1.5 ms to 3 ms", "1.00x", "", "<= 10 ms: met"
    ]  # fmt: skip
    cells = [cell.strip() for cell in theirs.split("|")[1:-1]]
    assert cells == [
        "", "", "theirs", "10 ms", "9 ms to 11 ms", "5.00x", "3.00 to 7.33",
        ">= 8x: falls short by 37.5 %",
    ]  # fmt: skip
    assert rest == ["", "other:", "", "```", "as it is", "```", "", "- a note"]
    assert "```" not in case_tables(found, markdown=False)
    quick = dataclasses.replace(found, settings={"quick": True})
    assert case_tables(quick, markdown=False).endswith("the numbers say nothing.")


def test_single_values_have_no_spread():
    text = case_tables(
        result(measurement(samples={"ours": [1.0], "theirs": [3.0]})), markdown=False
    )
    assert " to " not in text
    assert "3.00x" in text


def test_table_of_targets():
    found = {
        "nms": result(measurement(targets=(Target(4.0, "theirs"), Target(0.001)))),
        "losses": result(measurement(case="losses")),
    }
    lines = targets_table(found, markdown=True).splitlines()[2:]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] == [
        ["nms", "a scene", "time", ">= 4x", "theirs: 5.00x", "met"],
        ["nms", "a scene", "time", "<= 1 ms", "2 ms", "falls short by 100.0 %"],
    ]
    assert targets_table({"losses": found["losses"]}, markdown=True).startswith("No targets")


def test_the_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "new" / "x.json"
    found = {
        "nms": result(
            measurement(
                targets=(Target(4.0, "theirs"),), notes=("n",), parameters={"boxes": 3}, text="t"
            )
        )
    }
    write_json(path, found)
    assert read_json(path) == found
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    (case,) = content["cases"].values()
    assert case["machine"]["processor"] == "abacus"
    assert case["measurements"][0]["samples"]["ours"] == [0.002, 0.001, 0.004]


def test_no_file_no_results(tmp_path):
    assert read_json(tmp_path / "none.json") == {}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 99, "cases": {}}', '{"schema": 1, "cases": {"a": {}}}']
)
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cannot read the results in .*x\.json, remove it"):
        read_json(path)


def test_document(tmp_path):
    document = tmp_path / "docs" / "p.md"
    document.parent.mkdir()
    document.write_text(
        "prose\n<!-- begin machine --><!-- end machine -->\n"
        "<!-- begin assignment -->old<!-- end assignment -->\n"
        "<!-- begin losses -->stays<!-- end losses -->\n"
    )
    other = {**MACHINE, "processor": "slide rule"}
    found = {
        "assignment": result(measurement(case="assignment")),
        "nms": result(measurement(), machine=other),
    }
    write_document(document, found, document.parent / "images" / "x.png")
    text = document.read_text()
    assert text.startswith("prose\n")
    assert "old" not in text
    assert "stays" in text
    assert "| theirs" in text
    assert "![Assignment time](images/x.png)" in text
    assert "- assignment: abacus, 10 cores, 1 of them used (load before: 0.5)" in text
    assert "- nms: slide rule" in text
    write_document(document, {"nms": found["nms"]}, None)
    assert "\nslide rule, 10 cores" in document.read_text()


def test_a_document_must_be_there_and_have_blocks(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no document"):
        write_document(tmp_path / "p.md", {"nms": result(measurement())}, None)
    (tmp_path / "p.md").write_text("no markers")
    with pytest.raises(ValueError, match="has none of the blocks"):
        write_document(tmp_path / "p.md", {"nms": result(measurement())}, None)


def test_picture_shows_both_sweeps(tmp_path, monkeypatch):
    axes_seen = []
    monkeypatch.setattr(
        "benchmarks.picture.Figure.savefig",
        lambda self, path: (axes_seen.extend(self.axes), path.write_bytes(b"x")),
    )
    sweep = [
        measurement(
            samples={"ours": [0.001 * n], "theirs": [0.01 * n]},
            parameters={"boxes": n, "pixels": p, "sweep_boxes": p == 100, "sweep_pixels": n == 3},
        )
        for n, p in ((9, 100), (3, 100), (3, 400))
    ]
    plot_assignment(result(*sweep, measurement()), tmp_path / "x.png")
    left, right = axes_seen
    assert [axes.get_xscale() for axes in (left, right)] == ["log", "log"]
    assert left.get_yscale() == "log"
    lines = {line.get_label(): line for line in left.get_lines()}
    assert list(lines["theirs"].get_xdata()) == [3, 9]
    assert list(lines["theirs"].get_ydata()) == pytest.approx([30, 90])  # ms
    assert [list(line.get_xdata()) for line in right.get_lines()] == [[100, 400]] * 2
    assert (tmp_path / "x.png").exists()
