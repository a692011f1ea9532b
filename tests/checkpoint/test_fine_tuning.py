"""Weights for another number of classes: all but the class predictor is kept."""

import copy
import logging
import math
from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from atss_d2 import Predictor
from atss_d2.checkpoint import CheckpointError, SafeCheckpointer, load_file, save_file
from atss_d2.config import load_config
from atss_d2.engine import Trainer, build_model, load_weights
from tests import detector, rcnn_models, toy
from tests.detectron2_models import NUM_CLASSES, fcos, retinanet

PREDICTOR = ("head.cls_score.weight", "head.cls_score.bias")
PRIOR = -math.log(99)
MESSAGE = (
    "head.cls_score.weight and head.cls_score.bias keep their initialization, the rest is loaded: "
    "'{path}' was trained with {there} classes, but the model has {here}"
)


def begin(model: nn.Module, path: Path, folder: Path) -> None:
    """As a training does that is not resumed."""
    SafeCheckpointer(model, str(folder)).resume_or_load(str(path), resume=False)


def warnings(caplog) -> list:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def write(folder: Path, model: nn.Module, suffix: str = ".pth") -> Path:
    return save_file(model.state_dict(), folder / f"a{suffix}")


def assert_all_but_the_predictor(model: nn.Module, path: Path, fresh: dict) -> None:
    expected = load_file(path)["model"]
    for name, value in model.state_dict().items():
        source = fresh if name in PREDICTOR else expected
        torch.testing.assert_close(value, source[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("num_anchors", "there", "here", "suffix"),
    [(1, 80, 3, ".pth"), (3, 3, 80, ".safetensors"), (9, 9, 1, ".pth"), (1, 2, 3, ".pth")],
)
def test_another_number_of_classes(tmp_path, caplog, num_anchors, there, here, suffix):
    source = detector.build(num_classes=there, num_anchors=num_anchors, seed=1)
    path = write(tmp_path, source, suffix)
    model = detector.build(num_classes=here, num_anchors=num_anchors, seed=2)
    fresh = {name: model.state_dict()[name].clone() for name in PREDICTOR}
    begin(model, path, tmp_path)
    assert_all_but_the_predictor(model, path, fresh)
    assert MESSAGE.format(path=path, there=there, here=here) in caplog.text
    assert len(warnings(caplog)) == 1  # and nothing about missing or skipped keys


@pytest.mark.parametrize("build", [retinanet, fcos])
def test_detectors_of_detectron2(tmp_path, caplog, build):
    model = build()
    fresh = {name: model.state_dict()[name].clone() for name in PREDICTOR}
    source = copy.deepcopy(model)
    num_anchors = source.head.cls_score.out_channels // NUM_CLASSES
    source.head.cls_score = nn.Conv2d(toy.CHANNELS, 80 * num_anchors, 3)
    path = write(tmp_path, source)
    nn.init.zeros_(model.head.bbox_pred.weight)  # is loaded
    begin(model, path, tmp_path)
    assert_all_but_the_predictor(model, path, fresh)
    assert f"was trained with 80 classes, but the model has {NUM_CLASSES}" in caplog.text


R_CNN_PREDICTORS = ("box_predictor", "mask_head.predictor", "sem_seg_head.predictor")


@pytest.mark.parametrize("kind", ["mask_rcnn_fpn", "cascade_rcnn", "panoptic_fpn"])
def test_r_cnns_of_detectron2(tmp_path, caplog, kind):
    node = rcnn_models.rcnn_config(kind, with_masks=True)
    model = rcnn_models.build(node)
    node.roi_heads.num_classes = 80
    if kind == "panoptic_fpn":
        node.sem_seg_head.num_classes = 54
    path = write(tmp_path, rcnn_models.build(node, seed=7))
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="with 80 classes, but the model has 3 .roi_heads"):
        load_weights(model, str(path))
    model.load_state_dict(fresh)
    caplog.clear()
    begin(model, path, tmp_path)
    expected = load_file(path)["model"]
    for name, value in model.state_dict().items():
        is_fresh = value.shape != expected[name].shape
        assert is_fresh <= any(part in name for part in R_CNN_PREDICTORS)
        torch.testing.assert_close(value, (fresh if is_fresh else expected)[name], rtol=0, atol=0)
        assert is_fresh == (name in caplog.text)
    assert "was trained with 80 classes, but the model has 3" in caplog.text
    assert ("trained with 54 classes, but the model has 5" in caplog.text) == (
        kind == "panoptic_fpn"
    )


def test_r_cnns_that_differ_in_more_than_classes(tmp_path):
    node = rcnn_models.rcnn_config()
    model = rcnn_models.build(node)
    for box_head, box_predictor in (
        ({}, {"cls_agnostic_bbox_reg": True}),
        ({"fc_dims": [8]}, {"input_shape": ShapeSpec(channels=8)}),
    ):
        other = copy.deepcopy(node)
        other.roi_heads.num_classes = 80
        other.roi_heads.box_head.update(box_head)
        other.roi_heads.box_predictor.update(box_predictor)
        path = write(tmp_path, rcnn_models.build(other))
        with pytest.raises(CheckpointError, match="does not fit the model"):
            begin(model, path, tmp_path)


def test_other_differences_are_errors(tmp_path):
    for there, here, name in (
        ({"num_anchors": 3}, {"num_anchors": 1}, "head.cls_score.weight"),
        # As many outputs as there.
        ({"num_anchors": 3}, {"num_anchors": 1, "num_classes": 9}, "head.bbox_pred.weight"),
    ):
        path = write(tmp_path, detector.build(**there))
        with pytest.raises(CheckpointError, match=f"{name} is .* there and .* here"):
            begin(detector.build(**here), path, tmp_path)
    state = detector.build(num_classes=80).state_dict()
    state["backbone.stem.weight"] = torch.zeros(64, 3, 4, 4)
    path = save_file(state, tmp_path / "b.pth")
    message = (
        r"fit the model: backbone.stem.weight is \(64, 3, 4, 4\) there and \(64, 3, 8, 8\) here, "
        r"head.cls_score.weight is .*, head.cls_score.bias is .*; take the config"
    )
    with pytest.raises(CheckpointError, match=message):
        begin(detector.build(num_classes=3), path, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"head.cls_score.weight": torch.zeros(80, 32, 3, 3)},  # other channels
        {"head.cls_score.bias": torch.zeros(7)},  # does not fit the weight
        {"head.cls_score.bias": torch.zeros(())},
        {"head.cls_score.weight": torch.zeros(0, 64, 3, 3), "head.cls_score.bias": torch.zeros(0)},
    ],
)
def test_predictors_that_are_not_of_other_classes(tmp_path, change):
    path = save_file({**detector.build(num_classes=80).state_dict(), **change}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"head\.cls_score\.(weight|bias)"):
        begin(detector.build(num_classes=3), path, tmp_path)


def test_a_model_that_is_used_needs_the_same_classes(tmp_path):
    path = save_file(detector.build(num_classes=80).state_dict(), tmp_path / "a.pth")
    message = (
        f"'{path}' was trained with 80 classes, but the model has 3 .head.cls_score.weight.: set "
        "num_classes=80; to train on other classes, start from it by train.init_checkpoint"
    )
    model = detector.build(num_classes=3)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, str(path))
    cfg = toy.config(tmp_path)
    weights = save_file(build_model(cfg).state_dict(), tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="was trained with 2 classes, but the model has 5"):
        Predictor(cfg, weights, overrides=["model.num_classes=5"])
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    (tmp_path / "last_checkpoint").write_text("a.pth")
    with pytest.raises(CheckpointError, match=message):
        checkpointer.resume_or_load("", resume=True)


# Training


@pytest.fixture
def of_five_classes(tmp_path) -> Path:
    model = build_model(toy.config(tmp_path, **{"model.num_classes": 5}))
    nn.init.normal_(model.head.cls_score.bias)
    return save_file(model.state_dict(), tmp_path / "five.pth")


def assert_trained_from(path: Path, output_dir: Path, *parts: str) -> None:
    checkpoint = load_file(output_dir / "model_final.pth")
    for part in parts:
        weights = checkpoint[part]
        assert weights["head.cls_score.bias"].tolist() == pytest.approx([PRIOR] * 2)
        std = weights["head.cls_score.weight"].std().item()
        assert std == pytest.approx(0.01, rel=0.2)  # as initialized
        for name, value in load_file(path)["model"].items():
            if name not in PREDICTOR and "running_" not in name and "num_batches" not in name:
                torch.testing.assert_close(weights[name], value, rtol=0, atol=0)


def test_a_lazy_config(toy_data, tmp_path, of_five_classes, caplog):
    overrides = {"train.init_checkpoint": str(of_five_classes), "train.max_iter": 1}
    overrides |= {"optimizer.lr": 0.0, "train.ema": {"enabled": True, "decay": 0.9}}
    run = toy.Run(tmp_path, **overrides).train()
    assert_trained_from(of_five_classes, run.output_dir, "model", "trained_model")
    assert MESSAGE.format(path=of_five_classes, there=5, here=2) in caplog.text
    # Which is then of two classes, and goes on as such.
    run.cfg.train.max_iter = 2
    run.train(resume=True)
    assert run.checkpoint()["iteration"] == 1


def test_a_yaml_config(toy_data, tmp_path, of_five_classes, caplog):
    (tmp_path / "toy.yaml").write_text(toy.yaml_config(tmp_path / "output"))
    cfg = load_config(tmp_path / "toy.yaml")
    overrides = ["MODEL.WEIGHTS", str(of_five_classes), "MODEL.DEVICE", "cpu", "DATASETS.TEST", ()]
    cfg.merge_from_list([*overrides, "SOLVER.MAX_ITER", 1, "SOLVER.BASE_LR", 0.0])
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert_trained_from(of_five_classes, tmp_path / "output", "model")
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 1
    torch.testing.assert_close(again.model.state_dict(), trainer.model.state_dict())
    assert MESSAGE.format(path=of_five_classes, there=5, here=2) in caplog.text
