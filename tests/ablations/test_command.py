"""``python -m ablations``: from the command line to the document, on a toy data set."""

import json
import re
from pathlib import Path

import pytest

from ablations import ROWS, __main__
from ablations.configs import DATA
from tests import toy

ROOT = Path(__file__).resolve().parents[2]
OVERRIDE = """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from tests import toy

_toy = toy.config("unused")
dataloader = _toy.dataloader
model = dict(
    backbone=L(toy.ToyBackbone)(),
    head=dict(input_shape=[ShapeSpec(channels=toy.CHANNELS)] * 2, conv_dims=[toy.CHANNELS]),
    anchor_generator=dict(sizes=[[32], [64]], strides=[8, 16]),
    head_in_features=["p3", "p4"],
    num_classes=len(toy.CLASSES),
    pixel_std=[57.0, 57.0, 57.0],
)
train = dict(max_iter=1, eval_period=1, init_checkpoint="", log_period=1)
"""


@pytest.fixture
def toy_study(tmp_path, monkeypatch):
    """Rows on a data set called "toy"."""
    toy.write_dataset(tmp_path)
    (tmp_path / "override.py").write_text(OVERRIDE)
    monkeypatch.setitem(DATA, "toy", str(tmp_path / "override.py"))
    return ["--data", "toy", "--output", str(tmp_path / "output")]


def test_runs_resumes_skips_and_reports(toy_study, tmp_path, capsys, monkeypatch):
    rows = ["--rows", "table3/retinanet_atss", "table4/k9", "--seeds", "0"]
    override = "train.checkpointer.period=1"
    assert __main__.main([*rows, override, *toy_study]) == 0
    printed = capsys.readouterr().out
    assert printed.count("start ") == 1  # of two rows that are one
    (path,) = (tmp_path / "output").glob("toy/*/seed0/results.json")
    content = json.loads(path.read_text())
    assert (content["row"], content["seed"]) == ("table3/retinanet_atss", 0)
    assert (content["iterations"], content["overrides"]) == (1, [override])
    assert content["seconds"] > 0
    assert 0 <= content["metrics"]["AP"] <= 100

    # It lost its results, as if the command had been stopped before it wrote them.
    path.unlink()
    (tmp_path / "idle.py").write_text("")
    monkeypatch.setattr(__main__, "TRAIN_NET", tmp_path / "idle.py")
    assert __main__.main([*rows, override, *toy_study]) == 0
    printed = capsys.readouterr().out
    assert re.findall("start .*", printed) == ["start   table3/retinanet_atss seed 0 (resumed)"]
    assert json.loads(path.read_text())["seconds"] is None

    document = tmp_path / "docs" / "a.md"
    document.parent.mkdir()
    document.write_text("<!-- begin toy table4 --><!-- end toy table4 -->")
    report = ["--report", "--document", str(document), override, *toy_study]
    assert __main__.main(report) == 0
    (line,) = [x for x in document.read_text().splitlines() if "k = 9" in x]
    assert re.search(r"\| 39\.3 \| \d+\.\d \| 1 \|", line)

    capsys.readouterr()
    assert __main__.main(["--list", "--rows", "table4/k9", override, *toy_study]) == 0
    assert "(1)" in capsys.readouterr().out


def test_a_failure_ends_in_its_exit_code(toy_study, tmp_path, capsys, monkeypatch):
    script = tmp_path / "broken.py"
    script.write_text("raise RuntimeError('out of luck')")
    monkeypatch.setattr(__main__, "TRAIN_NET", script)
    assert __main__.main(["--rows", "table4/k3", *toy_study]) == 1
    printed = capsys.readouterr().out
    assert "FAILED: RuntimeError: out of luck" in printed
    assert "console.log" in printed
    assert "failed: table4/k3 seed 0" in printed


def test_list_names_every_row_with_its_config_and_number(tmp_path, capsys):
    assert __main__.main(["--list", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in ROWS:
        (line,) = [line for line in lines if line.split()[:1] == [row.name]]
        assert line.endswith(f"configs/ablations/{row.name}.py")
        assert (f" {row.quoted_ap} " if row.quoted_ap else "insensitive") in line
        assert (ROOT / line.split()[-1]).is_file()


def test_on_coco_it_prints_the_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(__main__, "execute", None)  # nothing is run
    arguments = ["--data", "coco", "--rows", "table5/scale[59]", "--seeds", "0", "3"]
    assert __main__.main([*arguments, "--num-gpus", "4", "optimizer.lr=0.005"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.search(r"table5/(\w+)\.py", line)[1] for line in lines] == ["scale5", "scale9"] * 2
    for line in lines:
        assert line.startswith("python train_net.py --config-file configs/ablations/table5/scale")
        assert " --num-gpus 4 --resume train.output_dir=" in line
        assert line.endswith(" optimizer.lr=0.005")
    assert [line.split()[-2] for line in lines] == [f"train.seed={n}" for n in (0, 0, 3, 3)]


def test_positives_are_counted_into_a_file(toy_study, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(__main__, "measure_positives", lambda data: {"of": data})
    assert __main__.main(["--positives", *toy_study]) == 0
    path = tmp_path / "output" / "toy" / "positives.json"
    assert json.loads(path.read_text()) == {"of": "toy"}
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "table9/x"], "no row fits 'table9/x'"),
        (["--rows", "table4/k3", "train.max_itr=3"], "did you mean train.max_iter"),
        (["--rows", "table4/k3", "train.max_iter=many"], "train.max_iter must be a number"),
        (["--report", "--document", "/nowhere/a.md"], "there is no document /nowhere/a.md"),
    ],
)
def test_errors_are_sentences(toy_study, arguments, message):
    with pytest.raises(SystemExit) as error:
        __main__.main([*arguments, *toy_study])
    assert str(error.value).startswith("ablations: ")
    assert message in str(error.value)
