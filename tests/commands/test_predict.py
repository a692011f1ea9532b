import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances

import atss_d2

_FILE = Path(__file__).resolve().parents[1] / "tools" / "demo.py"
_SPEC = importlib.util.spec_from_file_location("tools_demo", _FILE)
demo = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(demo)

GREY = 90


class FakePredictor:
    """Finds a box at 0.3, one at 0.8 and one at 0.6 in every image; records how it was made."""

    class_names = ("disc", "square")

    def __init__(self, config, weights=None, *, device=None, overrides=()):
        type(self).arguments = (config, weights, device, list(overrides))

    def __call__(self, image):
        assert image.dtype == np.uint8
        assert image.ndim == 3
        return Instances(
            image.shape[:2],
            pred_boxes=Boxes(
                torch.tensor(
                    [[1.0, 1.0, 9.0, 9.0], [5.0, 5.0, 25.0, 20.0], [30.0, 5.0, 39.0, 25.0]]
                )
            ),
            scores=torch.tensor([0.3, 0.6, 0.8]),
            pred_classes=torch.tensor([0, 0, 1]),
        )


@pytest.fixture
def photos(tmp_path):
    """A folder of grey images of 40 x 30 pixels: a/1.png, b/1.png, b/2.png; and a text file."""
    folder = tmp_path / "photos"
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((30, 40, 3), GREY, dtype=np.uint8))
    (folder / "b" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(inputs, *flags)``: the exit status and the content of detections.json."""
    monkeypatch.setattr(demo, "Predictor", FakePredictor)

    def run(inputs, *flags):
        output = tmp_path / "out"
        arguments = ["--config-file", "some.py", "--input", *map(str, inputs)]
        try:
            status = demo.main([*arguments, "--output", str(output), *flags])
        except SystemExit as error:
            status = error.code
        file = output / "detections.json"
        return status, json.loads(file.read_text()) if file.exists() else None

    return run


def _is_changed(path):
    return np.any(cv2.imread(str(path)) != GREY, axis=2)


def test_pictures_and_detections_are_written(run, photos, tmp_path, capsys):
    status, results = run([photos / "b" / "2.png"])
    assert status == 0
    (result,) = results
    assert {k: v for k, v in result.items() if k != "detections"} == {
        "file_name": str(photos / "b" / "2.png"),
        "height": 30,
        "width": 40,
    }
    # The best first, those below 0.5 left out.
    first, second = result["detections"]
    assert first.pop("score") == pytest.approx(0.8)
    assert second.pop("score") == pytest.approx(0.6)
    assert first == {"bbox": [30, 5, 39, 25], "category_id": 1, "category": "square"}
    assert second == {"bbox": [5, 5, 25, 20], "category_id": 0, "category": "disc"}

    changed = _is_changed(tmp_path / "out" / "2.png")
    assert changed.shape == (30, 40)
    assert changed[5:20, 5].all()  # the left side of one box
    assert changed[5:25, 30].all()  # and of the other
    assert not changed[1:4, 1:4].any()  # the box at 0.3
    assert not _is_changed(photos / "b" / "2.png").any()
    assert "2 detections in 1 images" in capsys.readouterr().out


def test_confidence_threshold_holds_for_pictures_and_detections(run, photos, tmp_path):
    _, results = run([photos / "b" / "2.png"], "--confidence-threshold", "0.7")
    assert [x["category"] for x in results[0]["detections"]] == ["square"]
    changed = _is_changed(tmp_path / "out" / "2.png")
    assert changed[5:25, 30].all()
    assert not changed[:, :25].any()


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_a_threshold_that_is_no_probability_is_refused(run, photos, capsys, value):
    status, _ = run([photos / "a"], f"--confidence-threshold={value}")
    assert status == 2
    assert f"must be between 0 and 1, got {value}" in capsys.readouterr().err


def test_folders_and_patterns_are_expanded_and_images_taken_once(run, photos, tmp_path):
    status, results = run([photos / "b", photos / "*" / "1.png", photos / "**" / "2.*"])
    assert status == 0
    names = [Path(x["file_name"]).relative_to(photos).as_posix() for x in results]
    assert names == ["b/1.png", "b/2.png", "a/1.png"]
    # Two are called 1.png: neither overwrites the other.
    assert {
        x.relative_to(tmp_path / "out").as_posix() for x in (tmp_path / "out").rglob("*.*")
    } == {
        "a/1.png",
        "b/1.png",
        "2.png",
        "detections.json",
    }


def test_links_and_folders_are_no_further_images(run, photos):
    (photos / "a" / "link.png").symlink_to(photos / "a" / "1.png")
    (photos / "a" / "folder.png").mkdir()
    status, results = run([photos / "a" / "1.png", photos / "a"])
    assert status == 0
    assert len(results) == 1


def test_a_name_with_brackets_is_a_name(run, photos):
    folder = photos / "c [1]"
    folder.mkdir()
    (photos / "b" / "2.png").rename(folder / "x[2].png")
    for name in (folder / "x[2].png", folder):
        status, results = run([name])
        assert status == 0
        assert [x["file_name"] for x in results] == [str(folder / "x[2].png")]


def test_unreadable_files_are_named_and_the_others_done(run, photos, capsys):
    broken = photos / "b" / "0.png"
    broken.write_bytes((photos / "b" / "1.png").read_bytes()[:40])
    status, results = run([photos / "b", photos / "b" / "notes.txt", photos / "none.jpg"])
    assert status == 1
    assert [Path(x["file_name"]).name for x in results] == ["1.png", "2.png"]
    messages = capsys.readouterr().err
    for path in (broken, photos / "b" / "notes.txt"):
        assert f"error: cannot read '{path}': " in messages
    assert f"error: --input '{photos / 'none.jpg'}' does not exist" in messages


def test_no_image_at_all_is_an_error(run, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    status, results = run([tmp_path / "empty", photos / "*.png", photos / "none.jpg"])
    assert status == 2
    assert results is None
    message = capsys.readouterr().err
    assert f"'{tmp_path / 'empty'}' holds no image" in message
    assert f"'{photos / '*.png'}' matches no image" in message
    assert f"'{photos / 'none.jpg'}' does not exist" in message


def test_originals_are_not_overwritten(run, photos, capsys):
    status, results = run([photos / "b"], "--output", str(photos / "b"))
    assert status == 2
    assert results is None
    assert (
        f"--output would overwrite the image '{photos / 'b' / '1.png'}'" in capsys.readouterr().err
    )
    assert not _is_changed(photos / "b" / "1.png").any()


def test_an_output_that_is_a_file_is_refused(run, photos, capsys):
    status, _ = run([photos / "b"], "--output", str(photos / "b" / "notes.txt"))
    assert status == 2
    assert "notes.txt' is a file, not a folder" in capsys.readouterr().err


def test_an_interrupted_run_leaves_what_was_done(run, photos, monkeypatch, tmp_path):
    calls = []

    def interrupt(self, image):
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return FakePredictor("")(image)

    monkeypatch.setattr(
        demo, "Predictor", type("Interrupted", (FakePredictor,), {"__call__": interrupt})
    )
    with pytest.raises(KeyboardInterrupt):
        run([photos / "b"])
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 1


def test_flags_reach_the_predictor(run, photos):
    run([photos / "a"], "--weights", "w.pth", "--device", "cpu", "--opts", "model.x=1", "A.B", "2")
    assert FakePredictor.arguments == ("some.py", "w.pth", "cpu", ["model.x=1", "A.B", "2"])


_CONFIG = """
import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from atss_d2 import TorchvisionBackbone, get_config

_base = get_config("coco/atss_R_50_FPN_1x")
model, dataloader, train = _base.model, _base.dataloader, _base.train
model.backbone.bottom_up = L(TorchvisionBackbone)(name="mobilenet_v3_small", norm="BN")
model.num_classes = 5
dataloader.test.dataset.names = "shapes_val"
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=64)]
train.init_checkpoint = ""
train.device = "cpu"
"""


def test_with_a_real_detector(photos, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(_CONFIG)
    model = instantiate(LazyConfig.load(str(config)).model)
    torch.nn.init.constant_(model.head.cls_score.bias, 3.0)  # sees objects everywhere
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")

    arguments = ["--config-file", str(config), "--weights", str(tmp_path / "model.pth")]
    arguments += ["--input", str(photos / "b"), "--output", str(tmp_path / "out")]
    overrides = ["--opts", "model.max_detections_per_image=7"]
    assert demo.main([*arguments, *overrides]) == 0
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [len(x["detections"]) for x in results] == [7, 7]
    names = atss_d2.Predictor(str(config), str(tmp_path / "model.pth")).class_names
    for x in results[0]["detections"]:
        assert x["category"] == names[x["category_id"]]
        x0, y0, x1, y1 = x["bbox"]
        assert 0 <= x0 < x1 <= 40
        assert 0 <= y0 < y1 <= 30
    assert _is_changed(tmp_path / "out" / "1.png").any()


def test_wrong_configs_end_with_a_sentence(photos, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(_CONFIG)
    rest = ["--input", str(photos / "b"), "--output", str(tmp_path / "out")]
    for flags, message in [
        (["--config-file", "no/such"], "no/such"),
        (["--config-file", str(config)], "no weights"),
        (["--config-file", str(config), "--weights", "none.pth"], "none.pth"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            demo.main([*flags, *rest])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
