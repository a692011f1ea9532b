"""The command tools/convert_weights.py, the files that it writes, and loading without it."""

import copy
import json
import logging
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec

import atss_d2
from atss_d2 import Predictor, get_config
from atss_d2.checkpoint import (
    CheckpointError,
    SafeCheckpointer,
    apply_convention,
    convention_differences,
    convert_state_dict,
    load_file,
)
from atss_d2.checkpoint.conventions import convention_settings
from atss_d2.commands import convert_weights
from atss_d2.engine import apply_overrides, load_weights
from atss_d2.modeling.box_coding import PointDistances
from tests import foreign_checkpoints as foreign

ROOT = Path(atss_d2.__file__).resolve().parents[1]

SMALL = {"num_classes": 3, "channels": 64, "width": 8}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints as the two implementations write them."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.save({"model": foreign.authors(**SMALL), "iteration": 9}, folder / "authors.pth")
    content = {"meta": {"epoch": 12}, "state_dict": foreign.mmdet(**SMALL)}
    torch.save(content, folder / "mmdet.pth")
    return folder


def run(*arguments):
    return convert_weights.main([str(x) for x in arguments])


def picture():
    return np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


@pytest.mark.parametrize(("convention", "suffix"), [("authors", "pth"), ("mmdet", "safetensors")])
def test_weights_and_config_are_written(files, tmp_path, capsys, convention, suffix):
    output = tmp_path / "new folder" / f"it's.{suffix}"
    assert run(files / f"{convention}.pth", output) == 0
    printed = capsys.readouterr().out
    assert (
        f"keys of the model found in a file of {atss_d2.checkpoint.CONVENTIONS[convention].title}"
        in printed
    )
    for key in (
        "head.scales.4.scale",
        "model.num_classes",
        f"--config-file {shlex.quote(str(output.with_suffix('.py')))} --eval-only",
    ):
        assert key in printed
    assert {path.name for path in output.parent.iterdir()} == {"it's.py", output.name}

    checkpoint = load_file(output)
    theirs = load_file(files / f"{convention}.pth")
    expected, report = convert_state_dict(theirs)
    torch.testing.assert_close(dict(checkpoint["model"]), expected, rtol=0, atol=0)
    assert checkpoint["metadata"]["convention"] == convention
    assert checkpoint["metadata"]["config"] == "coco/atss_R_50_FPN_1x"
    assert json.loads(checkpoint["metadata"]["overrides"]) == report.overrides


@pytest.mark.parametrize("convention", ["authors", "mmdet"])
def test_the_config_builds_loads_and_detects(files, tmp_path, convention):
    """From another folder, and after the two files have moved together."""
    assert run(files / f"{convention}.pth", tmp_path / "a.pth", "--quiet") == 0
    for suffix in (".pth", ".py"):
        (tmp_path / "moved").mkdir(exist_ok=True)
        (tmp_path / f"a{suffix}").rename(tmp_path / f"moved/a{suffix}")
    smaller = "dataloader.test.mapper.augmentations.0.short_edge_length=96"
    predictor = Predictor(tmp_path / "moved/a.py", device="cpu", overrides=[smaller])
    assert convention_differences(predictor.model, convention) == []
    theirs = load_file(files / f"{convention}.pth")
    expected, report = convert_state_dict(theirs)
    model = instantiate(report.architecture.config_with(convention).model)
    model.load_state_dict(expected)
    weights = predictor.model.state_dict()
    torch.testing.assert_close(dict(weights), dict(model.state_dict()), rtol=0, atol=0)
    instances = predictor(picture())
    assert len(instances) > 20
    assert instances.pred_classes.max() < 3
    assert LazyConfig.load(str(tmp_path / "moved/a.py")).dataloader.train.total_batch_size == 16


def test_what_a_file_does_not_tell_is_told(files, tmp_path, capsys):
    output = tmp_path / "point.pth"
    assert (
        run(files / "authors.pth", output, "--regression", "point", "--convention", "authors") == 0
    )
    assert "model.box2box_transform.inset" in capsys.readouterr().out
    coder = instantiate(LazyConfig.load(str(output.with_suffix(".py"))).model).box2box_transform
    assert isinstance(coder, PointDistances)
    assert coder.inset == 0.5


def test_the_former_flag_works_and_names_the_new_one(files, tmp_path, capsys):
    assert run(files / "mmdet.pth", tmp_path / "a.pth", "--quiet", "--recipe", "authors") == 1
    error = capsys.readouterr().err
    assert "note: --recipe is now --convention\n" in error
    assert "do not fit the convention 'authors'" in error
    options = ["--quiet", "--recipe", "mmdet", "--to", "safetensors"]
    assert run(files / "mmdet.pth", tmp_path / "a.pth", *options) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "a.safetensors"]


# -------------------------------------------------------------------------------------- errors


def test_a_file_that_does_not_fit_leaves_nothing(files, tmp_path, capsys):
    theirs = foreign.mmdet(**SMALL)
    del theirs["neck.fpn_convs.2.conv.bias"]
    torch.save(theirs, tmp_path / "broken.pth")
    assert run(tmp_path / "broken.pth", tmp_path / "out.pth") == 1
    captured = capsys.readouterr()
    assert "missing" in captured.out
    assert "broken.pth" in captured.err
    assert "1 of the model not in the file: backbone.fpn_output5.bias 64" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["broken.pth"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mmdet.pth", "out.onnx"], "must end in .pth or .safetensors"),
        (["mmdet.pth", "mmdet.pth"], "would take the place of the source"),
        (["no.pth", "out.pth"], "no.pth"),
        (
            ["mmdet.pth", "out.pth", "--convention", "authors"],
            "do not fit the convention 'authors'",
        ),
        (["mmdet.pth", "out.pth", "--regression", "point"], "mmdetection 3.x has no such model"),
    ],
)
def test_errors_are_one_sentence(files, capsys, arguments, message):
    assert run(files / arguments[0], files / arguments[1], *arguments[2:], "--quiet") == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1


# ---------------------------------------------------------------------- loading without the tool


@pytest.mark.parametrize("convention", ["authors", "mmdet"])
def test_checkpoints_are_loaded_by_their_prefix(files, convention, caplog, monkeypatch):
    theirs = load_file(files / f"{convention}.pth")
    expected, report = convert_state_dict(theirs)
    cfg = report.architecture.config_with(convention)
    model = instantiate(cfg.model)
    monkeypatch.chdir(files)
    checkpointer = SafeCheckpointer(model)
    with caplog.at_level(logging.WARNING):
        checkpointer.load(f"{convention}://{convention}.pth")
    torch.testing.assert_close(dict(model.state_dict()), expected, rtol=0, atol=0)
    assert not caplog.records
    with pytest.raises(CheckpointError, match=f"{convention}://FILE"):  # the next one has no prefix
        checkpointer.load(f"{convention}.pth")

    other = instantiate(
        apply_convention(cfg, "mmdet" if convention == "authors" else "authors").model
    )
    with caplog.at_level(logging.WARNING):
        SafeCheckpointer(other).load(f"{convention}://{files / f'{convention}.pth'}")
    assert "input_format is " in caplog.text
    assert f"apply_convention(cfg, '{convention}')" in caplog.text


# ------------------------------------------------------------------------------- the document


def test_the_table_of_the_document():
    """Its snippets are run by tests/documents."""
    text = (ROOT / "docs/checkpoints.md").read_text()
    table = text.partition("### Conventions")[2].partition("### What")[0]
    for setting in convention_settings(get_config("coco/atss_R_50_FPN_1x"), "authors"):
        name = setting.rpartition(".")[2]
        if not name.startswith(("_", "test_score_thresh", "test_topk", "test_nms", "max_")):
            assert name in table
    for convention in ("authors", "mmdet"):  # each has a config, which needs nothing else
        cfg = get_config(f"conventions/atss_R_50_FPN_1x_{convention}")
        before = copy.deepcopy(cfg.model)
        assert apply_convention(cfg, convention).model == before


# Training checkpoints of mmdetection, which hold objects


@pytest.fixture(scope="module")
def epoch_12(files):
    content = torch.load(files / "mmdet.pth")
    with foreign.mmengine() as module:
        content["message_hub"] = {"log_scalars": {"train/loss": module.HistoryBuffer([1.0])}}
        torch.save(content, files / "epoch_12.pth")
    return files / "epoch_12.pth"


def test_training_checkpoints_of_mmdetection(files, epoch_12, tmp_path, capsys, caplog):
    assert run(epoch_12, tmp_path / "a.pth", "--quiet") == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: '{epoch_12}' is refused; no code in it was executed: it ask")
    assert "tools/convert_weights.py with --weights-only-parts" in message
    expected = convert_state_dict(load_file(files / "mmdet.pth")).state_dict
    for option in (["--weights-only-parts"], ["--convention", "mmdet"]):
        output = tmp_path / f"{option[-1]}.pth"
        assert run(epoch_12, output, "--quiet", *option) == 0
        torch.testing.assert_close(dict(load_file(output)["model"]), dict(expected))
    assert "not read, because they are objects: 1 x mmengine.logging" in caplog.text


def test_training_checkpoints_are_loaded_directly(files, epoch_12):
    models = []
    for path in (files / "mmdet.pth", epoch_12):
        cfg = get_config("conventions/atss_R_50_FPN_1x_mmdet")
        apply_overrides(cfg, ["model.num_classes=3", "model.backbone.out_channels=64"])
        apply_overrides(cfg, ["model.head.conv_dims=[64,64,64,64]"])
        apply_overrides(cfg, ["model.backbone.bottom_up.stages.width_per_group=8"])
        cfg.model.head.input_shape = [ShapeSpec(channels=64)] * 5
        models.append(instantiate(cfg.model))
        load_weights(models[-1], f"mmdet://{path}")
    torch.testing.assert_close(*(model.state_dict() for model in models), rtol=0, atol=0)


def test_a_file_that_holds_itself(tmp_path, capsys):
    content = {"model": {"a": 1}}
    content["model"]["model"] = content["model"]
    torch.save(content, tmp_path / "a.pth")
    assert run(tmp_path / "a.pth", tmp_path / "b.pth") == 1
    assert "there are no weights in this file" in capsys.readouterr().err
