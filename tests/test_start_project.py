"""From files to a detector with names: start_project and the commands that it prints, as typed."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog

from atss_d2.checkpoint import apply_convention, convention_differences
from atss_d2.commands import start_project
from atss_d2.config import get_config, load_config, view_of
from tests.drawn_set import IDS, write_set, write_voc

ROOT = Path(__file__).resolve().parent.parent
CATEGORIES = [{"id": i, "name": name} for name, i in IDS.items()]
# A short training on small images.
SHORT = [
    "train.max_iter=1",
    "train.eval_period=1",
    "dataloader.train.total_batch_size=1",
    "dataloader.test.num_workers=0",
    "dataloader.train.mapper.augmentations.0.short_edge_length=64",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    "train.report.num_pictures=2",
    "train.init_checkpoint=''",
    LOW := "model.test_score_thresh=0.0",  # an untrained head has low scores
]


@pytest.fixture
def backbone(tmp_path_factory, monkeypatch) -> Path:
    """A folder of data sets that has the ImageNet weights, so that none are fetched."""
    root = tmp_path_factory.mktemp("datasets")
    (root / "pretrained").mkdir()
    (root / "pretrained" / "mobilenet_v2.pth").touch()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root / "pretrained" / "mobilenet_v2.pth"


@pytest.fixture
def folder(tmp_path, monkeypatch, backbone):
    """The working directory: data/train.json and data/images, of twelve images."""
    write_set(tmp_path / "data", 12)
    monkeypatch.chdir(tmp_path)
    # Takes seconds, and has tests of its own.
    monkeypatch.setattr(start_project, "draw_page", lambda train, path, **_: path.touch())
    registered = set(DatasetCatalog)
    yield tmp_path
    for name in set(DatasetCatalog) - registered:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def run(*arguments: str) -> int:
    return start_project.main(["--train", "data/train.json", "data/images", *arguments])


def commands_of(output: str) -> dict[str, str]:
    """The commands at the end of the output, by what they are for."""
    lines = output[output.index("\nNext:") :].splitlines()[2:]
    return {name.split()[-1]: command.strip() for name, command in zip(lines[::2], lines[1::2])}


def shell(command: str, cwd: Path) -> str:
    result = subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def run_here(command: str, monkeypatch) -> None:
    """Runs a printed command in this process, which has imported torch."""
    _, script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_path(script, run_name="__main__")


def test_the_commands_as_typed_in_a_fresh_folder(tmp_path, backbone, monkeypatch):
    """Spaces in the paths; the names are right at every stop."""
    write_set(tmp_path / "my data", 30)
    script = shlex.join([sys.executable, str(ROOT / "tools" / "start_project.py")])
    data = "--train 'my data/train.json' 'my data/images'"
    output = shell(f"{script} {data} --output 'a project' --model mobilenetv2", tmp_path)
    for name in ("config.py", "data.png", "train.json", "val.json"):
        assert (tmp_path / "a project" / name).stat().st_size > 100
        assert f"\n  a project/{name}\n" in output
    commands = commands_of(output)
    assert list(commands) == ["train", "predict", "export"]

    shell(f"{commands['train']} {shlex.join(SHORT)}", tmp_path)
    best = tmp_path / "a project" / "output" / "model_best.pth"
    assert torch.load(best)["categories"] == CATEGORIES
    results = (tmp_path / "a project" / "output" / "metrics.json").read_text()
    assert {f"bbox/AP-{name}" for name in IDS} <= set(json.loads(results.splitlines()[-1]))

    monkeypatch.chdir(tmp_path)
    run_here(f"{commands['predict']} --confidence-threshold 0 --opts {LOW}", monkeypatch)
    found = (tmp_path / "a project" / "predictions" / "detections.json").read_text()
    assert '"bbox"' in found
    assert any(f'"{name}"' in found for name in IDS)
    # ONNX takes long; tests/deployment/ writes it.
    run_here(commands["export"].replace("--format onnx", "--format torchscript"), monkeypatch)
    files = {"atss_d2": ""}
    torch.jit.load(tmp_path / "a project" / "export" / "model.ts", _extra_files=files)
    assert json.loads(files["atss_d2"])["class_names"] == list(IDS)


def test_two_parts_are_taken_as_they_are(folder, capsys):
    write_set(folder / "held out", 5, name="val", seed=1)
    assert run("--val", "held out/val.json", "held out/images", "--output", "p") == 0
    output = capsys.readouterr().out
    assert "Nothing odd was found." in output
    assert sorted(path.name for path in (folder / "p").iterdir()) == ["config.py", "data.png"]
    cfg = load_config(folder / "p" / "config.py")
    assert view_of(cfg).categories == CATEGORIES
    assert cfg.model.num_classes == 3
    text = (folder / "p" / "config.py").read_text()
    assert str(folder / "data" / "train.json") in text
    assert "--input 'held out/images'" in commands_of(output)["predict"]


def test_a_split_is_repeatable_and_its_files_are_complete(folder, backbone):
    for output, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run("--output", output, "--seed", seed, "--val-fraction", "0.25") == 0
    parts = {
        output: [
            json.loads((folder / output / f"{name}.json").read_text()) for name in ("train", "val")
        ]
        for output in "abc"
    }
    assert parts["a"] == parts["b"] != parts["c"]
    train, val = ({image["file_name"] for image in part["images"]} for part in parts["a"])
    assert (len(train), len(val)) == (9, 3)
    assert train | val == {f"{i:04d}.jpg" for i in range(12)}
    text = (folder / "a" / "config.py").read_text()
    assert '_here / "train.json"' in text
    assert str(backbone) in text


def test_copies_of_a_file_are_not_split(folder):
    content = json.loads((folder / "data" / "train.json").read_text())
    for i in range(5):
        shutil.copy(folder / "data/images/0000.jpg", folder / f"data/images/copy{i}.jpg")
        content["images"].append({**content["images"][0], "id": i, "file_name": f"copy{i}.jpg"})
    (folder / "data" / "train.json").write_text(json.dumps(content))
    for seed in range(3):
        assert run("--output", str(seed), "--seed", str(seed)) == 0
        part = json.loads((folder / str(seed) / "val.json").read_text())
        names = {image["file_name"] for image in part["images"]}
        assert len(names & {"0000.jpg", *(f"copy{i}.jpg" for i in range(5))}) in (0, 6)


def test_pascal_voc_in_one_folder(folder):
    pytest.importorskip("supervision")
    write_voc(json.loads((folder / "data/train.json").read_text()), folder / "data/Annotations")
    (folder / "data/train.json").unlink()
    assert start_project.main(["--train", "data", "--output", "p"]) == 0
    cfg = load_config(folder / "p" / "config.py")
    assert [c["name"] for c in view_of(cfg).categories] == ["disc", "square", "triangle"]
    part = json.loads((folder / "p" / "val.json").read_text())
    assert all(image["width"] for image in part["images"])


def test_what_is_odd_is_listed_and_left_out(folder, capsys):
    content = json.loads((folder / "data" / "train.json").read_text())
    content["images"].append({"id": 1, "file_name": "gone.jpg", "height": 5, "width": 5})
    content["annotations"][0]["bbox"][2] = 0
    (folder / "data" / "train.json").write_text(json.dumps(content))
    assert run("--output", "p") == 0
    output = capsys.readouterr().out
    assert "  - data set: 1 image is missing, e.g. 'gone.jpg': left out\n" in output
    assert "  - data set: 1 box has no area, e.g. " in output
    assert "gone.jpg" not in (folder / "p" / "train.json").read_text()


def test_the_model_follows_the_machine_and_the_flag(folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("--output", "a") == 0
    assert "Model: mobilenetv2 (there is no GPU; --model r50 " in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert run("--output", "b") == 0
    assert "Model: r50 (there is a GPU; " in capsys.readouterr().out
    assert run("--output", "c", "--model", "mobilenetv2") == 0
    assert "Model: mobilenetv2 (as --model says)" in capsys.readouterr().out
    configs = {name: (folder / name / "config.py").read_text() for name in "abc"}
    assert 'get_config("custom/atss_R_50")' in configs["b"]
    assert "init_checkpoint" not in configs["b"]  # Detectron2's
    for name in "ac":
        assert 'get_config("custom/atss_mobilenetv2")' in configs[name]


def test_weights_that_cannot_be_fetched_are_a_warning(folder, capsys, monkeypatch):
    from atss_d2.data import DataError

    def prepare(root):
        raise DataError("the network is down")

    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder / "nothing"))
    monkeypatch.setattr("atss_d2.data.prepare_pretrained", prepare)
    monkeypatch.setattr(sys, "argv", ["atss-d2 start-project"])  # not the checkout's datasets/
    assert run("--output", "p", "--model", "mobilenetv2") == 0
    output = capsys.readouterr().out
    assert (
        "the ImageNet weights of MobileNetV2 could not be fetched (the network is down)" in output
    )
    cfg = load_config(folder / "p" / "config.py")
    assert cfg.train.init_checkpoint == "atss_d2://pretrained/mobilenet_v2.pth"


@pytest.mark.parametrize("prefix", ["mmdet://", "authors://", "", "mmdet://https://host/"])
def test_fine_tuning_is_one_option_away(folder, capsys, prefix):
    (folder / "a.pth").touch()
    assert run("--output", "p", "--weights", f"{prefix}a.pth") == 0
    cfg = load_config(folder / "p" / "config.py")
    foreign, _, rest = prefix.partition("://")
    path = f"https://host/{'a.pth'}" if rest else str(folder / "a.pth")
    assert cfg.train.init_checkpoint == (f"{foreign}://{path}" if foreign else path)
    if not foreign:
        return
    assert "Model: r50 (the model of --weights)" in capsys.readouterr().out
    expected = get_config("coco/atss_R_50_FPN_1x")
    apply_convention(expected.model, foreign)
    for key in ("pixel_mean", "pixel_std", "input_format", "anchor_generator"):
        assert cfg.model[key] == expected.model[key], key
    assert convention_differences(instantiate(cfg.model), foreign) == []


def test_an_earlier_project_is_kept_unless_told_otherwise(folder):
    assert run("--output", "p") == 0
    (folder / "p" / "config.py").write_text("mine")
    with pytest.raises(SystemExit, match=r"'p/config.py' exists: .* --overwrite"):
        run("--output", "p")
    assert (folder / "p" / "config.py").read_text() == "mine"
    assert run("--output", "p", "--overwrite") == 0
    assert "get_config" in (folder / "p" / "config.py").read_text()


WRONG = {
    "no weights": (["--output", "p", "--weights", "mmdet://b.pth"], "there is no file 'b.pth'"),
    "weights of another model": (
        ["--output", "p", "--weights", "mmdet://b.pth", "--model", "mobilenetv2"],
        "--weights mmdet://b.pth is for --model r50, not for mobilenetv2",
    ),
    "a file as output": (["--output", "data/train.json"], "is a file: give a folder"),
    "fraction": (["--output", "p", "--val-fraction", "1"], "must be between 0 and 1, got 1.0"),
    "seed": (["--output", "p", "--seed", "-1"], "--seed must not be negative"),
    "split and val": (
        ["--output", "p", "--seed", "1", "--val", "data/train.json", "data/images"],
        "--seed is for a split, but --val gives a validation set",
    ),
    "no val": (
        ["--output", "p", "--val", "gone.json", "data/images"],
        "'gone.json' does not exist",
    ),
    "its own data": (["--output", "data"], "'data/train.json' would be replaced"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_one_sentence_and_write_nothing(folder, case):
    arguments, message = WRONG[case]
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert re.search(re.escape(message), str(error.value))
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


def test_broken_data_are_one_sentence_and_write_nothing(folder):
    for name in os.listdir(folder / "data" / "images"):
        os.remove(folder / "data" / "images" / name)
    with pytest.raises(SystemExit, match=r"12 of 12 images .* is it the right folder\?$"):
        run("--output", "p")
    assert not (folder / "p").exists()


def test_names_of_programs(folder, capsys, monkeypatch):
    """``atss-d2`` where it was started so; in a checkout its scripts and this Python."""
    monkeypatch.setattr(sys, "argv", ["atss-d2 start-project"])
    assert run("--output", "p") == 0
    commands = commands_of(capsys.readouterr().out)
    assert commands["train"] == "atss-d2 train --config-file p/config.py"
    assert commands["export"].startswith("atss-d2 export --config-file p/config.py --format onnx ")
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tools" / "start_project.py")])
    monkeypatch.chdir(ROOT)
    output = ["--overwrite", "--output", str(folder / "p")]
    data = [str(folder / "data/train.json"), str(folder / "data/images")]
    for path, python in ((Path(sys.executable).parent, "python"), ("/nowhere", None)):
        monkeypatch.setenv("PATH", str(path))
        assert start_project.main(["--train", *data, *output]) == 0
        program, script, *_ = shlex.split(commands_of(capsys.readouterr().out)["train"])
        assert script == "train_net.py"
        if python is None:
            assert os.path.samefile(program, sys.executable)
        else:
            assert program == python
