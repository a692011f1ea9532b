"""tools/export_model.py: the files it writes, and what it refuses."""

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import atss_d2.export
from atss_d2 import Predictor
from atss_d2.config import load_config
from atss_d2.export import ExportedModel, load_exported
from tests import toy


def arguments(trained, *flags, config="torchscript.py"):
    weights = f"train.init_checkpoint={trained / 'model.pth'}"
    return ["--config-file", str(trained / config), *map(str, flags), weights]


def comparison(text):
    """Metric -> (model, file, difference), from the table at the end of what was printed."""
    lines = text[text.rindex("difference") :].splitlines()[2:]
    return {line.split()[0]: tuple(map(float, line.split()[1:])) for line in lines if line}


def assert_equal_metrics(text):
    metrics = comparison(text)
    assert metrics["AP"][0] > 20
    for model, file, difference in metrics.values():
        assert file == pytest.approx(model, abs=1e-4, nan_ok=True)
        assert abs(difference) < 1e-4 or np.isnan(model)


@pytest.mark.parametrize("file_format", ["torchscript", "pt2", "onnx"])
def test_files_are_as_good_as_the_model(exported, file_format):
    path, printed, _ = exported[file_format]
    assert_equal_metrics(printed)
    assert f"{path}: {path.stat().st_size / 1e6:.1f} MB" in printed
    detector = load_exported(path)
    assert detector.format == file_format
    metadata = detector.metadata
    assert metadata.class_names == toy.CLASSES
    assert metadata.config == f"{file_format}.py"
    assert metadata.input_format == ("RGB" if file_format == "onnx" else "BGR")
    assert metadata.input_dtype == "uint8"
    assert (metadata.shortest_edge, metadata.max_size, metadata.resize_factor) == {
        "torchscript": (96, 1333, None),
        "pt2": (None, None, None),
        "onnx": (None, None, 1.1),
    }[file_format]


def test_the_evaluation_is_of_the_file(export_model, trained, exported, tmp_path, capsys):
    """Against a model that finds nothing."""
    weights = torch.load(trained / "model.pth")
    weights["model"]["head.cls_score.bias"] -= 20.0
    torch.save(weights, tmp_path / "blind.pth")
    cfg = load_config(trained / "torchscript.py")
    blind = Predictor(cfg, tmp_path / "blind.pth").model
    export_model.compare(cfg, blind, exported["torchscript"].path)
    model, file, _ = comparison(capsys.readouterr().out)["AP"]
    assert np.isnan(model)
    assert file > 20


def test_scripted_and_nms_elsewhere(export_model, trained, tmp_path, capsys):
    path = tmp_path / "raw.ts"
    flags = ["--export-method", "scripting", "--no-nms", "--run-eval", "--output", path]
    assert export_model.main(arguments(trained, *flags)) == 0
    assert_equal_metrics(capsys.readouterr().out)
    assert not load_exported(path).metadata.with_nms


def test_bfloat16(export_model, trained, tmp_path, capsys):
    flags = ["--dtype", "bfloat16", "--run-eval", "--output", tmp_path]
    assert export_model.main(arguments(trained, *flags)) == 0
    model, file, _ = comparison(capsys.readouterr().out)["AP"]
    assert file == pytest.approx(model, abs=15)
    assert load_exported(tmp_path / "model.ts").metadata.dtype == "bfloat16"


def test_int8(export_model, trained, exported, tmp_path, capsys, monkeypatch):
    source = exported["onnx"].path

    def copy(model, sample, path, **_):  # exporting takes longer than the rest of the tests
        return Path(shutil.copy(source, path))

    monkeypatch.setattr(atss_d2.export, "export_onnx", copy)
    flags = ["--format", "onnx", "--int8", "--run-eval", "--output", tmp_path / "out"]
    assert export_model.main(arguments(trained, *flags, config="onnx.py")) == 0
    model, file, _ = comparison(capsys.readouterr().out)["AP"]
    assert file == pytest.approx(model, abs=15)
    assert load_exported(tmp_path / "out" / "model.onnx").metadata.dtype == "int8"


def test_yaml_configs(export_model, trained, tmp_path, capsys):
    flags = ["--config-file", str(trained / "config.yaml"), "--run-eval"]
    flags += ["--output", str(tmp_path), "MODEL.WEIGHTS", str(trained / "model.pth")]
    assert export_model.main(flags) == 0
    assert_equal_metrics(capsys.readouterr().out)


def test_the_sample_may_be_a_photograph(export_model, trained, tmp_path):
    picture = trained / "data" / "toy_val_0.png"
    flags = ["--sample-image", picture, "--output", tmp_path]
    assert export_model.main(arguments(trained, *flags)) == 0
    model = ExportedModel(load_exported(tmp_path / "model.ts"))
    predictor = Predictor(str(trained / "torchscript.py"), trained / "model.pth")
    for name in ("toy_val_0.png", "toy_val_1.png"):  # a portrait and a landscape
        image = cv2.imread(str(trained / "data" / name))
        expected = predictor(image)
        (found,) = model([predictor.prepare(image)])
        torch.testing.assert_close(
            found["instances"].pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3, rtol=0
        )
        assert len(expected) > 0


WRONG = {
    "unknown format": (["--format", "caffe2"], "invalid choice: 'caffe2'"),
    "scripting": (
        ["--format", "onnx", "--export-method", "scripting"],
        "--export-method scripting is for --format torchscript, not for onnx",
    ),
    "opset": (["--opset", "17"], "--opset is for --format onnx, not for torchscript: leave it out"),
    "old opset": (["--format", "onnx", "--opset", "11"], "opset must be >= 18, got 11"),
    "int8": (["--format", "pt2", "--int8"], "--int8 is for --format onnx, not for pt2"),
    "int8 and half": (
        ["--format", "onnx", "--int8", "--dtype", "float16"],
        "--int8 quantizes a float32 model, not one of --dtype float16",
    ),
    "half": (["--dtype", "float16"], "torchscript on cpu runs backbone and head in one of"),
    "sample": (["--sample-image", "none.jpg"], "there is no image --sample-image 'none.jpg'"),
    "config": (["--config-file", "demo/trees"], "There is no config 'demo/trees'"),
    "key": (["model.test_nms=0.5"], "The config has no key 'model.test_nms'; did you mean"),
    "late flag": (["train.seed=1", "--run-eval"], "flags such as --resume stand before the first"),
    "yaml key": (["MODEL.WEIGHTS", "x.pth"], "takes key=value; write train.init_checkpoint=x.pth"),
}


@pytest.mark.parametrize(("flags", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_work_is_refused_by_name(
    export_model, trained, tmp_path, capsys, flags, message
):
    if flags[0].startswith("--"):
        flags = arguments(trained, "--output", tmp_path / "out", *flags)
    else:
        flags = [*arguments(trained, "--output", tmp_path / "out"), *flags]
    with pytest.raises(SystemExit, match="2"):
        export_model.main(flags)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_wrong_files_are_refused(export_model, trained, tmp_path, capsys):
    (tmp_path / "text").write_text("")
    for flags, message in (
        (["--output", str(tmp_path / "text")], "text' is a file: give a folder, or a name that"),
        ([], "no checkpoint is named, and a model with random weights detects"),
        (["train.init_checkpoint=none.pth"], "There is no checkpoint at 'none.pth'"),
        (["--run-eval", "dataloader.evaluator=null"], "the config has no dataloader.evaluator"),
    ):
        with pytest.raises(SystemExit, match="2"):
            export_model.main(["--config-file", str(trained / "torchscript.py"), *flags])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "override"),
    [
        ("demo/atss_mobilenetv2_trees", "train.init_checkpoint=FILE"),
        ("yaml/atss_R_50_FPN_1x.yaml", "MODEL.WEIGHTS FILE"),
    ],
)
def test_backbones_are_not_taken_for_detectors(export_model, capsys, config, override):
    with pytest.raises(SystemExit, match="2"):
        export_model.main(["--config-file", config])
    message = capsys.readouterr().err
    assert "is a backbone to start training with, not a trained detector" in message
    assert override in message


def test_missing_packages_are_named(export_model, trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit, match="2"):
        export_model.main(arguments(trained, "--format", "onnx"))
    assert "onnxscript is not installed: pip install 'atss_d2[export]'" in capsys.readouterr().err
