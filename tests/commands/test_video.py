"""--video-input and --webcam of tools/demo.py."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from atss_d2.commands import predict

GREY = 90
SIZE = (64, 48)  # width and height
NUM_FRAMES = 6


class BrightPredictor:
    """Finds the bright square."""

    categories = ({"id": 5, "name": "square"},)

    def __init__(self, *args, **kwargs):
        self.model = SimpleNamespace(max_detections_per_image=100, test_nms_thresh=0.5)

    def __call__(self, images):
        return [self.detect(image) for image in images]

    def detect(self, image):
        ys, xs = np.nonzero(image[:, :, 0] > 180)
        box = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
        return Instances(
            image.shape[:2],
            pred_boxes=Boxes(torch.tensor(box, dtype=torch.float32)),
            scores=torch.tensor([0.9]),
            pred_classes=torch.tensor([0]),
        )


@pytest.fixture
def video(tmp_path):
    """A square of 16 pixels that moves 4 pixels a frame."""
    path = tmp_path / "moving.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE)
    assert writer.isOpened()
    for i in range(NUM_FRAMES):
        frame = np.full((*SIZE[::-1], 3), GREY, np.uint8)
        frame[24:40, 8 + 4 * i : 24 + 4 * i] = 250
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr("atss_d2.predictor.Predictor", BrightPredictor)
    monkeypatch.setattr("atss_d2.config.load_config", lambda config: config)

    def run(*flags):
        try:
            return predict.main(["--config-file", "some.py", *map(str, flags)])
        except SystemExit as error:
            return error.code

    return run


def frames(path):
    capture = cv2.VideoCapture(str(path))
    rate, found = capture.get(cv2.CAP_PROP_FPS), []
    while True:
        is_read, frame = capture.read()
        if not is_read:
            return rate, found
        found.append(frame)


def check_frames(path):
    rate, found = frames(path)
    assert rate == 10
    assert len(found) == NUM_FRAMES
    for i, frame in enumerate(found):
        assert frame.shape == (*SIZE[::-1], 3)
        x = 8 + 4 * i
        edge = frame[26:38, x : x + 2].astype(int)  # yellow, as far as the codec keeps colors
        assert edge[..., 1].mean() > edge[..., 0].mean() + 40, i


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".mov"])
def test_a_video_becomes_a_video_and_detections(run, video, tmp_path, capsys, suffix):
    output = tmp_path / "new" / f"out{suffix}"
    assert run("--video-input", video, "--output", output) == 0
    check_frames(output)
    coco = COCO(output.with_suffix(".json"))
    images = coco.dataset["images"]
    assert [x["frame_index"] for x in images] == list(range(NUM_FRAMES))
    assert {(x["file_name"], x["width"], x["height"]) for x in images} == {(str(video), *SIZE)}
    assert len(coco.dataset["annotations"]) == NUM_FRAMES
    for i, x in enumerate(coco.dataset["annotations"]):
        assert x["category_id"] == 5
        np.testing.assert_allclose(x["bbox"], [8 + 4 * i, 24, 16, 16], atol=2)  # JPEG's blur
    assert f"6 detections in 6 frames: {output}" in capsys.readouterr().out


def test_an_output_folder_gets_a_video_of_the_same_name(run, video, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there", tmp_path / "not_yet"):
        assert run("--video-input", video, "--output", folder) == 0
        assert sorted(x.name for x in folder.iterdir()) == ["moving.json", "moving.mp4"]
    # As Detectron2's demo, never over another file.
    assert run("--video-input", video, "--output", tmp_path / "there") == 2
    assert "moving.mp4' exists: remove it, or give another name" in capsys.readouterr().err


def test_a_window_without_an_output(run, video, monkeypatch):
    shown = []
    monkeypatch.setattr("atss_d2.commands.video.require_display", lambda: None)
    monkeypatch.setattr("cv2.namedWindow", lambda *args: None)
    monkeypatch.setattr("cv2.imshow", lambda title, picture: shown.append(picture))
    keys = iter([-1, -1, 27])  # no key; Esc at the third frame
    monkeypatch.setattr("cv2.waitKey", lambda milliseconds: next(keys))
    before = set(video.parent.iterdir())
    assert run("--video-input", video) == 0
    assert len(shown) == 3
    assert set(video.parent.iterdir()) == before


def test_a_camera_is_a_video_in_a_window(run, video, monkeypatch):
    shown, asked = [], []
    capture = cv2.VideoCapture

    def camera(number):
        asked.append(number)
        return capture(str(video))

    monkeypatch.setattr("cv2.VideoCapture", camera)
    monkeypatch.setattr("atss_d2.commands.video.require_display", lambda: None)
    monkeypatch.setattr("cv2.namedWindow", lambda *args: None)
    monkeypatch.setattr("cv2.imshow", lambda title, picture: shown.append(picture))
    monkeypatch.setattr("cv2.waitKey", lambda milliseconds: -1)
    assert run("--webcam") == 0
    assert run("--webcam", "2") == 0
    assert asked == [0, 2]
    assert len(shown) == 2 * NUM_FRAMES


def test_an_interrupted_video_leaves_what_was_done(run, video, tmp_path, monkeypatch):
    calls = []

    def detect(self, image):
        calls.append(image)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return BrightPredictor.detect(self, image)

    interrupted = type("Interrupted", (BrightPredictor,), {"detect": detect})
    monkeypatch.setattr("atss_d2.predictor.Predictor", interrupted)
    assert run("--video-input", video, "--output", tmp_path / "out.avi") == 130
    assert len(json.loads((tmp_path / "out.json").read_text())["images"]) == 3
    assert len(frames(tmp_path / "out.avi")[1]) == 3


def test_what_cannot_be_done_is_a_sentence(run, video, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    for flags, status, message in [
        (["--video-input", "none.mp4", "--output", "o"], 2, "'none.mp4' does not exist"),
        (["--video-input", text, "--output", tmp_path / "o"], 1, "OpenCV reads no picture from"),
        (["--video-input", video, "--output", "o.gif"], 2, "must end in one of .mp4, .mkv"),
        (["--webcam", "--output", "o"], 2, "--webcam shows a window and writes nothing"),
        (["--webcam", "one"], 2, "invalid int value: 'one'"),
        (["--video-input", video, "--image-ids", "a.json"], 2, "--image-ids is for --input"),
    ]:
        assert run(*flags) == status, flags
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
    monkeypatch.setattr("atss_d2.commands.video.require_display", lambda: None)
    assert run("--webcam", "99") == 1
    assert "error: --webcam: OpenCV reads no picture from 'camera 99'" in capsys.readouterr().err
