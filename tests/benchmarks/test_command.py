"""``python -m benchmarks``: all cases on tiny sizes, and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import peers
from benchmarks.cases import CASES
from benchmarks.results import read_json

ROOT = Path(__file__).resolve().parents[2]
MARKERS = "".join(
    f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in (*CASES, "machine", "targets")
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A quick run of everything: its folder and its results."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "p.md").write_text(MARKERS)
    arguments = ["--quick", "--json", str(folder / "x.json"), "--document", str(folder / "p.md")]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(ROOT / "datasets"))
        assert command.main(arguments) == 0
    assert torch.get_num_threads() == threads
    return folder, read_json(folder / "x.json")


def test_all_cases_are_measured(run):
    _, results = run
    assert list(results) == list(CASES)
    for name, result in results.items():
        assert result.measurements, name
        assert result.settings["quick"]
        assert result.machine["threads"] == 1
        for measurement in result.measurements:
            assert measurement.case == name
            assert measurement.samples or measurement.text
            for values in measurement.samples.values():
                assert all(isinstance(value, float) for value in values)
            if measurement.unit in ("s", "B"):
                assert all(min(values) > 0 for values in measurement.samples.values())


def test_quick_runs_set_no_targets_but_that_of_the_graph(run):
    _, results = run
    targets = [m for r in results.values() for m in r.measurements if m.targets]
    assert [m.quantity for m in targets] == ["graph breaks"]
    assert targets[0].is_met(targets[0].targets[0])


def test_contestants(run):
    _, results = run
    names = {
        name: {who for m in result.measurements for who in m.samples}
        for name, result in results.items()
    }
    assert names["assignment"] >= {
        peers.OURS, peers.FALLBACK, peers.PUBLISHED, peers.D2_RETINANET, peers.D2_FCOS,
        peers.TV_RETINANET, peers.IOU, peers.CENTER_SAMPLING,
    }  # fmt: skip
    for name in ("losses", "launches", "training_step"):
        assert names[name] >= {"ATSS", "Detectron2 FCOS", "Detectron2 RetinaNet"}
    assert len(names["postprocess"]) == 6
    assert {who.partition(",")[0] for who in names["focal_loss"]} == {
        "sigmoid_focal_loss", "fvcore (TorchScript)", "torchvision"
    }  # fmt: skip
    quantities = {m.quantity for m in results["focal_loss"].measurements}
    assert quantities == {"time", "extra memory"}
    assert {m.quantity for m in results["launches"].measurements} == {"launches", "waits"}


def test_mmdetection_is_used_or_said_to_be_missing(run):
    _, results = run
    result = results["assignment"]
    takes_part = any(peers.MMDET in m.samples for m in result.measurements)
    is_missing = any(peers.NO_MMDET in m.notes for m in result.measurements)
    assert takes_part != is_missing


def test_document_and_picture(run):
    folder, _ = run
    text = (folder / "p.md").read_text()
    for name in CASES:
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        assert "|" in text.partition(begin)[2].partition(end)[0], name
    assert "![Assignment time](images/assignment_time.png)" in text
    assert (folder / "images" / "assignment_time.png").stat().st_size > 10_000
    assert "convolution" in text  # the profile


def test_a_run_of_one_case_leaves_the_others(run, tmp_path, capsys):
    folder, results = run
    path = tmp_path / "x.json"
    path.write_text((folder / "x.json").read_text())
    assert command.main(["nms", "--quick", "--json", str(path)]) == 0
    found = read_json(path)
    assert list(found) == list(CASES)
    assert found["assignment"] == results["assignment"]
    assert found["nms"] != results["nms"]
    printed = capsys.readouterr().out
    assert "NMS (" in printed
    assert "Assignment (" not in printed
    assert str(path) in printed


def test_report_measures_nothing(run, tmp_path, capsys, monkeypatch):
    folder, _ = run
    monkeypatch.setattr(command, "measure", None)
    before = (folder / "x.json").read_text()
    document = tmp_path / "docs" / "p.md"
    document.parent.mkdir()
    document.write_text(MARKERS)
    arguments = ["--report", "--json", str(folder / "x.json"), "--document", str(document)]
    assert command.main(arguments) == 0
    assert (folder / "x.json").read_text() == before
    assert "| shifted by class" in document.read_text()
    assert (document.parent / "images" / "assignment_time.png").exists()
    assert "shifted by class" in capsys.readouterr().out


def test_the_document_of_the_project_has_all_blocks():
    for name in (*CASES, "machine", "targets"):
        in_deployment = name in ("deployment", "exported_nms")
        document = "deployment.md" if in_deployment else "performance.md"
        text = (ROOT / "docs" / document).read_text()
        assert text.count(f"<!-- begin {name} -->") == 1
        assert text.count(f"<!-- end {name} -->") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nmss"], "there is no case 'nmss'; cases are assignment, focal_loss"),
        (["--threads", "0"], "--threads must be >= 1, got 0"),
        (["--seconds", "-1"], "--seconds must be >= 0, got -1.0"),
        (["--device", "tpu"], "invalid choice"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_no_gpu_is_said(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        command.main(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report"], "there are no results in"),
        (["nms", "--report"], "there are no results in"),
    ],
)
def test_errors_are_sentences(arguments, message, tmp_path):
    with pytest.raises(SystemExit) as error:
        command.main([*arguments, "--json", str(tmp_path / "x.json")])
    assert str(error.value).startswith("benchmarks: ")
    assert message in str(error.value)


def test_a_report_of_what_was_not_measured(run, tmp_path):
    folder, _ = run
    content = json.loads((folder / "x.json").read_text())
    del content["cases"]["nms"]
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="has no results of nms"):
        command.main(["nms", "--report", "--json", str(tmp_path / "x.json")])


def test_help_needs_no_data():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0
    assert "cases: assignment, focal_loss" in result.stdout
