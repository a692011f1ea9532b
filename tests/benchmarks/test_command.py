"""``python -m benchmarks``: cases on tiny sizes, from the command line to the document."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import peers
from benchmarks.cases import CASES
from benchmarks.results import read_json

# Left out: files of all formats, which tests/export/ compares, and steps of three R-50.
CHEAP = [
    name
    for name in CASES
    if name not in ("deployment", "exported_nms", "quality_steps", "training_step")
]
ROOT = Path(__file__).resolve().parents[2]
BLOCKS = (*CASES, "machine", "targets", "assignment summary")


def test_a_quick_run(tmp_path, monkeypatch, capsys):
    document, path = tmp_path / "p.md", tmp_path / "x.json"
    document.write_text("".join(f"<!-- begin {x} -->\n<!-- end {x} -->\n" for x in BLOCKS))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(ROOT / "datasets"))
    threads = torch.get_num_threads()
    flags = ["--quick", "--json", str(path), "--document", str(document)]
    assert command.main([*CHEAP, *flags]) == 0
    assert torch.get_num_threads() == threads
    results = read_json(path)
    assert list(results) == CHEAP
    for name, result in results.items():
        for measurement in result.measurements:
            assert measurement.samples or measurement.text, name
            if measurement.unit in ("s", "B"):
                assert all(min(values) > 0 for values in measurement.samples.values())
    assignment = results["assignment"]
    takes_part = any(peers.MMDET in m.samples for m in assignment.measurements)
    assert takes_part != any(peers.NO_MMDET in m.notes for m in assignment.measurements)
    # Quick runs set no targets but that of the graph.
    targets = [m for r in results.values() for m in r.measurements if m.targets]
    assert [m.quantity for m in targets] == ["graph breaks"]
    assert targets[0].is_met(targets[0].targets[0])

    text = document.read_text()
    for name in CHEAP:
        assert "|" in text.partition(f"<!-- begin {name} -->")[2].partition("<!-- end")[0], name
    assert "![Assignment time](images/assignment_time.png)" in text
    assert (tmp_path / "images" / "assignment_time.png").stat().st_size > 10_000

    # A report measures nothing and needs results.
    monkeypatch.setattr(command, "measure", None)
    document.write_text("<!-- begin nms --><!-- end nms -->")
    arguments = ["nms", "--report", "--json", str(path), "--document", str(document)]
    assert command.main(arguments) == 0
    assert "| shifted by class" in document.read_text()
    assert "NMS (" in capsys.readouterr().out
    content = json.loads(path.read_text())
    del content["cases"]["nms"]
    path.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="benchmarks: .* has no results of nms"):
        command.main(arguments)


def test_the_documents_of_the_project_have_all_blocks():
    text = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    for name in BLOCKS:
        assert text.count(f"<!-- begin {name} -->") == text.count(f"<!-- end {name} -->") >= 1
