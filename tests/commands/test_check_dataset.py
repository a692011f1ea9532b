"""check-dataset as it is typed: exit codes, JSON, formats, configs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from atss_d2.commands import check_dataset
from tests.data.cases import Sample
from tests.data.trying import write_config
from tests.drawn_set import write_set, write_voc, write_yolo

ROOT = Path(__file__).resolve().parents[2]


def run(capsys, *arguments):
    """Exit code, standard output and standard error."""
    try:
        code = check_dataset.main(list(map(str, arguments)))
    except SystemExit as end:
        code = end.code
    return (code, *capsys.readouterr())


@pytest.fixture
def sample(tmp_path):
    return Sample(tmp_path / "sample")


def paths(sample):
    return [
        *("--train", sample.json_file("train"), sample.folder / "train"),
        *("--val", sample.json_file("val"), sample.folder / "val"),
    ]


def test_the_script_in_a_fresh_process(sample, tmp_path):
    sample.content["train"]["annotations"][0]["bbox"] = [1, 2, -3, 4]
    sample.write()
    command = [sys.executable, str(ROOT / "tools/check_dataset.py"), *map(str, paths(sample))]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 1, process.stderr
    assert process.stderr == ""
    assert "  error: 1 box has a negative width or height, e.g. [1, 2, -3, 4]" in process.stdout
    assert process.stdout.endswith("1 kinds of errors, 0 kinds of warnings\n")


def test_exit_codes(capsys, sample):
    sample.write()
    assert run(capsys, *paths(sample))[0] == 0
    sample.content["train"]["annotations"][0]["bbox"] = [1, 2, 0, 4]
    sample.json_file("train").write_text(json.dumps(sample.content["train"]))
    code, out, _ = run(capsys, *paths(sample))
    assert code == 0
    assert "warning: 1 box has no area, e.g. [1, 2, 0, 4] in '000.jpg'" in out
    assert run(capsys, *paths(sample), "--strict")[0] == 1


def test_json_has_everything(capsys, sample):
    sample.content["val"]["annotations"][3].update(bbox=[1, float("nan"), 3, 4])
    sample.write()
    code, out, _ = run(capsys, *paths(sample), "--json")
    content = json.loads(out)
    assert code == 1
    assert [x["role"] for x in content["data_sets"]] == ["train", "val"]
    found = {x["code"]: x for x in content["data_sets"][1]["findings"]}
    assert found["box_values"] == {
        "code": "box_values",
        "severity": "error",
        "count": 1,
        "what": "1 box is not four finite numbers",
        "examples": [
            {
                "text": "[1, nan, 3, 4] in '001.jpg'",
                "file": "001.jpg",
                "image_id": 11,
                "annotation_id": 4,
                "value": "[1, nan, 3, 4]",
            }
        ],
        "fix": "give x, y, width, height",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which data set? Give --train"),
        (["--train", "no.json", "no"], "'no.json' does not exist"),
        (["--config-file", "x.py", "--train", "a"], "drop --train and --val"),
        (["--config-file", "no_such_config"], "no_such_config"),
        (["--config-file", "custom/atss_R_50"], "'my_train' stands for a data set of your own"),
        (["--train", "a", "b", "c"], "--train takes a JSON file and a folder, not 3 paths"),
        (["--train", "a", "--opts", "x=1"], "--opts overrides a config"),
        (["--trian", "a"], "did you mean --train"),
    ],
)
def test_wrong_command_lines_are_one_sentence(capsys, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_folder_formats_of_start_project(capsys, tmp_path):
    pytest.importorskip("supervision")
    content = write_set(tmp_path, 4)
    write_voc(content, tmp_path / "Annotations")
    code, out, _ = run(capsys, "--train", tmp_path)
    assert code == 0, out
    assert "4 images" in out
    shutil.rmtree(tmp_path / "Annotations")
    write_yolo(content, tmp_path / "labels", tmp_path / "data.yaml")
    image = tmp_path / "images" / "0001.jpg"
    image.write_bytes(image.read_bytes()[:900])
    code, out, _ = run(capsys, "--train", tmp_path)
    assert code == 1
    assert "1 image is truncated, e.g. '0001.jpg'" in out


@pytest.fixture
def forgotten():
    """Forgets the data sets that a config has registered."""
    yield
    for name in ("case_train", "case_val"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_a_config_and_its_overrides(capsys, sample, tmp_path, forgotten):
    sample.file("val").unlink()
    sample.write()
    write_config(sample, tmp_path / "config.py")
    code, out, _ = run(capsys, "--config-file", tmp_path / "config.py")
    assert code == 1
    assert "1 image is missing, e.g. '000.jpg'" in out
    only_train = "dataloader.test.dataset.names=case_train"
    code, out, _ = run(capsys, "--config-file", tmp_path / "config.py", "--opts", only_train)
    assert code == 0
    assert "8 images are also in train" in out
    classes = "model.num_classes=5"
    arguments = [tmp_path / "config.py", "--opts", only_train, classes]
    code, out, _ = run(capsys, "--config-file", *arguments)
    assert code == 1
    assert "set model.num_classes=2" in out
