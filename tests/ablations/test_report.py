"""Tables, pictures and the document, from made-up results."""

import json
import re

import cv2
import pytest

from ablations import collect, find_row, plan_runs, read_results, write_document
from ablations.document import cost_of
from ablations.report import NOT_MEASURED, Measurement, mean_and_spread
from ablations.rows import TABLES, select_rows

from .conftest import write_result


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Three seeds of two rows, one seed of two others, and the counts of positives."""
    output = tmp_path_factory.mktemp("study")
    aps = {
        "table3/retinanet_atss": 20.0,
        "table4/k3": 15.0,
        "table1/retinanet": 9.0,
        "table1/retinanet_gn": 12.0,
    }
    rows = select_rows(list(aps))
    for run in plan_runs(rows, "shapes", seeds=(0, 1, 2), output=output):
        if run.row.table == "table1" and run.seed:
            continue
        metrics = dict.fromkeys(("AP50", "AP75", "APs", "APm"), 5.0) | {"APl": None}
        metrics["AP"] = aps[run.row.name] + run.seed
        seconds = None if run.row.name == "table4/k3" and run.seed == 0 else 100.0 + run.seed
        write_result(run, metrics=metrics, seconds=seconds)
    group = {"from": 8.0, "to": 11.3, "objects": 4, "mean": 1.5, "std": 1.0, "without": 0.25}
    empty = {"from": 11.3, "to": 16.0, "objects": 0, "mean": None, "std": None, "without": None}
    rule = {"summary": {**group, "objects": 4}, "by_size": [group, empty]}
    sweeps = {
        table: {row.name: group for row in select_rows([f"{table}/*"])}
        for table in ("table4", "table5")
    }
    scenes = {"generated": {"IoU": rule, "ATSS": rule}, "shapes": {"IoU": rule, "ATSS": rule}}
    content = {"scenes": scenes, "sweeps": sweeps}
    (output / "shapes" / "positives.json").write_text(json.dumps(content))
    return output


@pytest.fixture(scope="module")
def written(output, tmp_path_factory):
    """A document with a block of everything, filled; and its pictures."""
    document = tmp_path_factory.mktemp("docs") / "ablations.md"
    names = [*TABLES, "positives", "cost"]
    blocks = "\n".join(
        f"prose on {name}\n<!-- begin shapes {name} -->\nold\n<!-- end shapes {name} -->\n"
        for name in names
    )
    document.write_text(f"# Title\n\n{blocks}\n<!-- begin trees table1 -->old<!-- end x -->\n")
    return document, write_document(document, output, "shapes")


def block(text, name):
    return re.search(f"<!-- begin shapes {name} -->(.*)<!-- end shapes {name} -->", text, re.S)[1]


def test_results_are_found_by_config_for_every_row_that_has_it(output):
    measurements = collect(read_results(output, "shapes"), "shapes")
    measured = {name for name, m in measurements.items() if m.results}
    atss = {"table3/retinanet_atss", "table4/k9", "table5/scale8"}
    atss |= {"table6/aspect_1_1", "table7/atss_1x1"}
    assert measured == atss | {"table4/k3", "table1/retinanet", "table1/retinanet_gn"}
    k9 = measurements["table4/k9"]
    assert k9.values() == [20.0, 21.0, 22.0]
    assert (k9.mean(), k9.spread(), k9.seconds()) == (21.0, 1.0, 101.0)
    assert (k9.mean("APl"), k9.spread("APl")) == (None, None)
    assert measurements["table4/k3"].seconds() == 101.5  # of 101 and 102
    one = measurements["table1/retinanet"]
    assert (one.mean(), one.spread()) == (9.0, None)
    assert (mean_and_spread(k9), mean_and_spread(one)) == ("21.0 ± 1.0", "9.0")


def test_tables_of_the_document(written):
    text = written[0].read_text()
    lines = block(text, "table4").strip().splitlines()
    assert lines[0].startswith("| row | quoted AP, COCO | AP, shapes | seeds | AP50 |")
    assert lines[2] == (
        "| [k = 3](../configs/ablations/table4/k3.py) | 38.0 | 16.0 ± 1.0 | 3 "
        "| 5.0 | 5.0 | 5.0 | 5.0 |  | 102 |"
    )
    assert lines[3].startswith(
        f"| [k = 5](../configs/ablations/table4/k5.py) | 38.8 | {NOT_MEASURED} |  |  |"
    )
    assert len({line.count("|") for line in lines[:11]}) == 1
    for table in TABLES:
        rows = select_rows([f"{table}/*"])
        labels = re.findall(r"^\| \[(.*?)\]\(", block(text, table), re.M)
        assert labels == [row.label for row in rows]
    # A number that the paper does not give is left out.
    assert "[1:4](../configs/ablations/table6/aspect_1_4.py) |  | not" in block(text, "table6")


def test_prose_and_blocks_of_other_data_stay(written):
    text = written[0].read_text()
    assert text.startswith("# Title\n")
    assert [f"prose on {name}" in text for name in TABLES] == [True] * len(TABLES)
    assert "<!-- begin trees table1 -->old<!-- end x -->" in text
    assert "\nold\n" not in text


def test_pictures(written):
    """One for each table with two measured rows, linked from its block."""
    document, pictures = written
    text = document.read_text()
    measured = ["table1", "table4", "positives"]
    assert [path.name for path in pictures] == [f"ablation_shapes_{x}.png" for x in measured]
    for name, path in zip(measured, pictures, strict=True):
        image = cv2.imread(str(path))
        assert image.shape[1] >= 800
        assert image.std() > 5  # not a blank page
        assert f"](images/{path.name})" in block(text, name)
    assert ".png" not in block(text, "table2")


def test_positives_of_the_document(written):
    text = block(written[0].read_text(), "positives")
    assert text.count("| 8 to 11 | 4 | 1.5 (25 %) | 1.5 (25 %) |") == 2
    assert "11 to 16" not in text  # no object


def test_cost_counts_a_shared_run_once(output):
    measurements = collect(read_results(output, "shapes"), "shapes")
    text = cost_of(list(measurements.values()))
    assert text.startswith("8 runs of 100 iterations; 0.2 hours in all, 100 to 102 seconds a run")
    assert cost_of([Measurement(find_row("table4/k3"), ())]) == "No run has been made."
