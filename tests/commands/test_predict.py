"""tools/demo.py, which is atss_d2/commands/predict.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

import atss_d2
from atss_d2.commands import predict

ROOT = Path(__file__).resolve().parents[2]
GREY = 90


class FakePredictor:
    """Finds a box at 0.3, one at 0.8 and one at 0.6 in every image; records how it was made."""

    categories = ({"id": 7, "name": "disc"}, {"id": 3, "name": "square"})

    def __init__(self, config, weights=None, *, device=None, overrides=(), batch_size=1):
        type(self).arguments = (config, weights, device, list(overrides), batch_size)
        self.model = SimpleNamespace(max_detections_per_image=3, test_nms_thresh=0.5)

    def __call__(self, images):
        return [self.detect(image) for image in images]

    def detect(self, image):
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
    """A folder of gray images of 40 x 30 pixels: a/1.png, b/1.png, b/2.png; and a text file."""
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
    monkeypatch.setattr("atss_d2.predictor.Predictor", FakePredictor)
    monkeypatch.setattr("atss_d2.config.load_config", lambda config: config)

    def run(inputs, *flags):
        output = tmp_path / "out"
        arguments = ["--config-file", "some.py", "--input", *map(str, inputs)]
        try:
            status = predict.main([*arguments, "--output", str(output), *flags])
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
    path = str(photos / "b" / "2.png")
    assert results["images"] == [{"id": 1, "file_name": path, "width": 40, "height": 30}]
    assert results["categories"] == list(FakePredictor.categories)
    # The best first, those below 0.5 left out.
    first, second = results["annotations"]
    assert first.pop("score") == pytest.approx(0.8)
    assert second.pop("score") == pytest.approx(0.6)
    common = {"image_id": 1, "iscrowd": 0}
    assert first == {"id": 1, "bbox": [30, 5, 9, 20], "category_id": 3, "area": 180, **common}
    assert second == {"id": 2, "bbox": [5, 5, 20, 15], "category_id": 7, "area": 300, **common}

    changed = _is_changed(tmp_path / "out" / "2.png")
    assert changed.shape == (30, 40)
    assert changed[5:20, 5].all()  # the left side of one box
    assert changed[5:25, 30].all()  # and of the other
    assert not changed[1:9, 1].any()  # the box at 0.3
    assert not _is_changed(photos / "b" / "2.png").any()
    assert "2 detections in 1 images" in capsys.readouterr().out


def test_confidence_threshold_holds_for_pictures_and_detections(run, photos, tmp_path):
    _, results = run([photos / "b" / "2.png"], "--confidence-threshold", "0.7")
    assert [x["category_id"] for x in results["annotations"]] == [3]
    changed = _is_changed(tmp_path / "out" / "2.png")
    assert changed[5:25, 30].all()
    assert not changed[:, :10].any()


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_a_threshold_that_is_no_probability_is_refused(run, photos, capsys, value):
    status, _ = run([photos / "a"], f"--confidence-threshold={value}")
    assert status == 2
    assert f"must be a number between 0 and 1, got '{value}'" in capsys.readouterr().err


def test_folders_and_patterns_are_expanded_and_images_taken_once(run, photos, tmp_path):
    status, results = run([photos / "b", photos / "*" / "1.png", photos / "**" / "2.*"])
    assert status == 0
    names = [Path(x["file_name"]).relative_to(photos).as_posix() for x in results["images"]]
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
    assert len(results["images"]) == 1


def test_a_name_with_brackets_is_a_name(run, photos):
    folder = photos / "c [1]"
    folder.mkdir()
    (photos / "b" / "2.png").rename(folder / "x[2].png")
    for name in (folder / "x[2].png", folder):
        status, results = run([name])
        assert status == 0
        assert [x["file_name"] for x in results["images"]] == [str(folder / "x[2].png")]


def test_unreadable_files_are_named_and_the_others_done(run, photos, capsys):
    broken = photos / "b" / "0.png"
    broken.write_bytes((photos / "b" / "1.png").read_bytes()[:40])
    status, results = run([photos / "b", photos / "b" / "notes.txt", photos / "none.jpg"])
    assert status == 1
    assert [Path(x["file_name"]).name for x in results["images"]] == ["1.png", "2.png"]
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


def test_an_interrupted_run_leaves_what_was_done(run, photos, monkeypatch, tmp_path, capsys):
    calls = []

    def interrupt(self, image):
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return FakePredictor.detect(self, image)

    monkeypatch.setattr(
        "atss_d2.predictor.Predictor",
        type("Interrupted", (FakePredictor,), {"detect": interrupt}),
    )
    status, results = run([photos / "b"])
    assert status == 130
    assert [len(results[key]) for key in ("images", "annotations")] == [1, 2]
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".json"] == [
        "1.png"
    ]
    assert f"interrupted; what was done is in {tmp_path / 'out'}" in capsys.readouterr().err


def test_flags_reach_the_predictor(run, photos):
    flags = ["--weights", "w.pth", "--device", "cpu", "--batch-size", "4"]
    run([photos / "a"], *flags, "--opts", "model.x=1", "A.B", "2")
    assert FakePredictor.arguments == ("some.py", "w.pth", "cpu", ["model.x=1", "A.B", "2"], 4)


def test_the_most_detections_of_a_pass_are_a_warning(run, photos, capsys):
    run([photos / "b" / "2.png"], "--confidence-threshold", "0.31")
    assert "warning" not in capsys.readouterr().err
    status, _ = run([photos / "b" / "2.png"], "--confidence-threshold", "0.2")
    assert status == 0
    message = capsys.readouterr().err
    assert f"warning: '{photos / 'b' / '2.png'}' has 3 detections, the most that one" in message
    assert "use --tiles, or raise it with --opts model.max_detections_per_image=1000" in message


def test_tiles(run, tmp_path, monkeypatch, capsys):
    """More squares than a pass may find, one of them across every border of the tiles."""
    pixels = np.full((96, 160, 3), GREY, dtype=np.uint8)
    corners = [(20, 10), (60, 10), (120, 10), (30, 50), (58, 60), (140, 75)]
    for x, y in corners:
        pixels[y : y + 12, x : x + 12] = 250
    cv2.imwrite(str(tmp_path / "large.png"), pixels)

    def detect(self, image):
        """The first two squares, in the order of their areas."""
        _, _, boxes, _ = cv2.connectedComponentsWithStats((image[:, :, 0] > 200).astype(np.uint8))
        boxes = boxes[boxes[:, 4].argsort(kind="stable")[::-1]][1:3, :4].astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return Instances(
            image.shape[:2],
            pred_boxes=Boxes(torch.from_numpy(boxes)),
            scores=torch.full((len(boxes),), 0.9),
            pred_classes=torch.zeros(len(boxes), dtype=torch.int64),
        )

    finder = type("Finder", (FakePredictor,), {"detect": detect})
    monkeypatch.setattr("atss_d2.predictor.Predictor", finder)
    _, results = run([tmp_path / "large.png"])
    assert len(results["annotations"]) == 2
    capsys.readouterr()
    status, results = run([tmp_path / "large.png"], "--tiles", "48", "--tile-overlap", "0.4")
    assert status == 0
    assert sorted(x["bbox"] for x in results["annotations"]) == sorted(
        [float(x), float(y), 12.0, 12.0] for x, y in corners
    )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tiles", "many"], "must be a whole number between 32 and 1000000, got 'many'"),
        (["--tiles", "5"], "must be a whole number between 32 and 1000000, got '5'"),
        (["--tiles", "--tile-overlap", "1"], "must be a number between 0 and 0.9, got '1'"),
        (["--tile-overlap", "0.5"], "--tile-overlap is for --tiles: give both"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--video-input", "a.mp4"], "argument --video-input: not allowed with argument --input"),
        (["--image-ids", "none.json"], "--image-ids 'none.json' does not exist"),
    ],
)
def test_wrong_flags_end_with_a_sentence(run, photos, capsys, flags, message):
    status, results = run([photos / "a"], *flags)
    assert (status, results) == (2, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith(message)
    assert "Traceback" not in lines[0]


def test_ids_of_images_come_from_annotations(run, photos, tmp_path, capsys):
    (tmp_path / "val.json").write_text(
        json.dumps(
            {"images": [{"id": 30, "file_name": "b/1.png"}, {"id": 8, "file_name": "2.png"}]}
        )
    )
    status, results = run([photos / "b"], "--image-ids", str(tmp_path / "val.json"))
    assert status == 0
    assert [x["id"] for x in results["images"]] == [30, 8]
    assert [x["image_id"] for x in results["annotations"]] == [30, 30, 8, 8]
    status, _ = run([photos / "a"], "--image-ids", str(tmp_path / "val.json"))
    assert status == 2
    assert f"has no image '{photos / 'a' / '1.png'}'" in capsys.readouterr().err


def test_without_a_display_an_output_is_asked_for(photos, monkeypatch, capsys):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for source in (["--input", str(photos / "a")], ["--webcam"]):
        with pytest.raises(SystemExit, match="2"):
            predict.main(["--config-file", "some.py", *source])
        expected = "there is no display to show pictures on: give --output"
        assert expected in capsys.readouterr().err


def test_pictures_are_shown_without_an_output(run, photos, monkeypatch):
    shown = []
    monkeypatch.setattr("atss_d2.commands.video.require_display", lambda: None)
    monkeypatch.setattr("cv2.namedWindow", lambda *args: None)
    monkeypatch.setattr("cv2.imshow", lambda title, picture: shown.append(picture))
    keys = iter([ord("n"), 27])  # the next one; Esc
    monkeypatch.setattr("cv2.waitKey", lambda milliseconds: next(keys))
    (photos / "b" / "3.png").write_bytes((photos / "b" / "2.png").read_bytes())
    arguments = ["--config-file", "some.py", "--input", str(photos / "b")]
    assert predict.main(arguments) == 0
    assert len(shown) == 2
    assert np.any(shown[0] != GREY, axis=2)[5:20, 5].all()


def test_16_bit_images_are_not_white(run, tmp_path, monkeypatch):
    seen = []

    def detect(self, image):
        seen.append(image)
        return FakePredictor.detect(self, image)

    watching = type("Watching", (FakePredictor,), {"detect": detect})
    monkeypatch.setattr("atss_d2.predictor.Predictor", watching)
    gray = np.tile(np.linspace(0, 65535, 40).astype(np.uint16), (30, 1))
    Image.fromarray(gray).save(tmp_path / "gray.png")
    status, _ = run([tmp_path / "gray.png"])
    assert status == 0
    assert (seen[0][0, 0, 0], seen[0][0, -1, 0]) == (0, 255)
    assert 120 < seen[0][0, 20, 0] < 140
    picture = cv2.imread(str(tmp_path / "out" / "gray.png"))
    assert 120 < picture[29, 20, 0] < 140


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
    assert predict.main([*arguments, *overrides]) == 0
    coco = COCO(tmp_path / "out" / "detections.json")
    predictor = atss_d2.Predictor(str(config), str(tmp_path / "model.pth"), overrides=overrides[1:])
    assert coco.dataset["categories"] == predictor.categories
    for image in coco.dataset["images"]:
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        expected = predictor(image["file_name"])
        assert len(found) == len(expected) == 7
        boxes = torch.tensor([x["bbox"] for x in found])
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=0, atol=1e-4)
        ids = [predictor.categories[c]["id"] for c in expected.pred_classes.tolist()]
        assert [x["category_id"] for x in found] == ids
    assert _is_changed(tmp_path / "out" / "1.png").any()


def test_wrong_configs_end_with_a_sentence(photos, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(_CONFIG)
    torch.save(instantiate(LazyConfig.load(str(config)).model).state_dict(), tmp_path / "w.pth")
    weights = ["--weights", str(tmp_path / "w.pth")]
    (tmp_path / "broken.py").write_text("model = (")
    (tmp_path / "other.yaml").write_text("MODEL: {NO_SUCH_KEY: 1}\nVERSION: 2")
    (tmp_path / "empty.py").write_text("x = 1")
    rest = ["--input", str(photos / "b"), "--output", str(tmp_path / "out")]
    for flags, message in [
        (["--config-file", "no/such"], "no/such"),
        (["--config-file", str(config)], "no weights"),
        (["--config-file", str(config), "--weights", "none.pth"], "none.pth"),
        (["--config-file", str(photos / "b" / "notes.txt")], "notes.txt"),
        (["--config-file", str(tmp_path / "broken.py")], "broken.py"),
        (["--config-file", str(tmp_path / "other.yaml")], "MODEL.NO_SUCH_KEY"),
        (["--config-file", str(tmp_path / "empty.py"), "--weights", "none.pth"], "model"),
        (["--config-file", str(config), "--device", "toaster"], "toaster"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            predict.main([*flags, *rest])
        (line,) = capsys.readouterr().err.splitlines()
        assert ": error: " in line
        assert message in line
    assert not (tmp_path / "out").exists()
    unwritable = ["--output", str(photos / "b" / "notes.txt" / "out")]
    with pytest.raises(SystemExit, match="2"):
        predict.main(["--config-file", str(config), *rest[:2], *unwritable, *weights])
    assert "notes.txt/out' cannot be made: Not a directory" in capsys.readouterr().err


def test_the_command_in_a_process_of_its_own(photos, tmp_path):
    """As a person types it, with a data set that is not here: names travel in the checkpoint."""
    config = tmp_path / "config.py"
    config.write_text(
        _CONFIG
        + """
from detectron2.data.datasets import register_coco_instances
register_coco_instances("mine", {}, "nowhere/val.json", "nowhere")
dataloader.test.dataset.names = dataloader.train.dataset.names = "mine"
"""
    )
    names = [{"id": 10 * i + 3, "name": name} for i, name in enumerate("äbcde")]
    model = instantiate(LazyConfig.load(str(config)).model)
    torch.nn.init.constant_(model.head.cls_score.bias, 3.0)
    torch.save({"model": model.state_dict(), "categories": names}, tmp_path / "model.pth")
    arguments = ["--config-file", config, "--weights", "model.pth", "--input", photos / "b"]
    command = [sys.executable, ROOT / "tools" / "demo.py", *arguments, "--output", "found"]
    environment = {x: y for x, y in os.environ.items() if x != "PYTHONPATH"}
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "detections in 2 images: found" in result.stdout
    content = json.loads((tmp_path / "found" / "detections.json").read_text(encoding="utf-8"))
    assert content["categories"] == names
    assert {x["category_id"] for x in content["annotations"]} <= {3, 13, 23, 33, 43}
    assert "unknown" not in result.stderr
