"""examples/ and tools/predict_exported.py: each in a process of its own, on photographs.

What a file finds there is what :class:`Predictor` finds, which never saw the file.
"""

import json
import subprocess
import sys
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from atss_d2.commands import predict
from atss_d2.export import Metadata, load_exported
from atss_d2.modeling.nms import batched_nms
from atss_d2.plain.detections import nms
from tests import toy
from tests.deployment.conftest import CATEGORIES
from tests.detector import random_boxes

ROOT = Path(__file__).resolve().parents[2]
# Example -> (format, what must not be imported).
US = ["atss_d2", "detectron2", "fvcore", "omegaconf"]
EXAMPLES = {
    "onnx_detect.py": ("onnx", ["torch", "torchvision", *US]),
    "torchscript_detect.py": ("torchscript", US),
    "pt2_detect.py": ("pt2", US),
}
# Runs a script as `python SCRIPT ARGUMENTS` does, once for each list of arguments, and says how it
# ended and what it has imported.
_RUN = """
import json, runpy, sys
script, forbidden, *runs = json.loads(sys.argv[1])
ends = []
for arguments in runs:
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
        ends.append(None)
    except SystemExit as end:
        ends.append(end.code)
print(json.dumps([ends, [name for name in forbidden if name in sys.modules]]))
"""


@pytest.fixture(scope="module")
def photos(trained):
    """Three pictures; the camera was turned for the last one."""
    folder = trained / "photos"
    folder.mkdir()
    for name in ("portrait.png", "landscape.png"):
        number = 0 if name.startswith("portrait") else 1
        content = (trained / "data" / f"toy_val_{number}.png").read_bytes()
        (folder / name).write_bytes(content)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "landscape.png").save(folder / "turned.jpg", exif=exif, quality=95)
    return folder


def run(script, forbidden, *runs, cwd):
    """What was printed, and how each run ended."""
    content = json.dumps([script, forbidden, *runs], default=str)
    command = [sys.executable, "-W", "ignore", "-c", _RUN, content]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr
    ends, imported = json.loads(result.stdout.splitlines()[-1])
    assert imported == []
    return result.stdout, ends


def corners(bbox):
    """COCO's box as two corners."""
    left, top, width, height = bbox
    return left, top, left + width, top + height


def assert_same(detections, instances):
    """Detections are (box, score, name)."""
    assert len(detections) == len(instances) > 0
    boxes, scores, names = zip(*detections)
    np.testing.assert_allclose(boxes, instances.pred_boxes.tensor, atol=1e-2)
    np.testing.assert_allclose(scores, instances.scores, atol=1e-4)
    assert names == tuple(toy.CLASSES[c] for c in instances.pred_classes)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run_without_what_they_do_not_need(exported, photos, tmp_path, example):
    file_format, forbidden = EXAMPLES[example]
    path, _, predictor = exported[file_format]
    script, output = ROOT / "examples" / example, tmp_path / "detections.json"
    gray = np.tile(np.linspace(0, 65535, 96).astype(np.uint16), (128, 1))
    Image.fromarray(gray).save(tmp_path / "gray.png")
    runs = [[path, photos / "turned.jpg", output], [path, tmp_path / "gray.png", tmp_path / "g"]]
    _, (end, message) = run(script, forbidden, *runs, cwd=tmp_path)
    assert not end
    assert "scale gray images of 16 bits to 8 bits first" in message
    found = json.loads(output.read_text())
    expected = predictor(photos / "turned.jpg")
    assert expected.image_size == (128, 96)
    assert_same([(corners(x["bbox"]), x["score"], x["category"]) for x in found], expected)


def test_all_examples_are_tested_and_short():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
    for example in EXAMPLES:
        lines = (ROOT / "examples" / example).read_text().splitlines()
        assert len([line for line in lines if line.strip()]) <= 40


def check_predictions(output, predictor, paths):
    """A detections.json and pictures, made with threshold 0."""
    coco = COCO(output / "detections.json")
    assert [x["file_name"] for x in coco.dataset["images"]] == list(map(str, paths))
    assert coco.dataset["categories"] == CATEGORIES
    names = {category["id"]: category["name"] for category in CATEGORIES}
    for image in coco.dataset["images"]:
        expected = predictor(image["file_name"])
        assert (image["height"], image["width"]) == expected.image_size
        found = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert_same(
            [(corners(x["bbox"]), x["score"], names[x["category_id"]]) for x in found], expected
        )
        picture = np.asarray(Image.open(output / Path(image["file_name"]).name))
        assert picture.shape == (*expected.image_size, 3)
        # Boxes have colors, the photographs have none.
        assert (np.ptp(picture, axis=2) > 100).any()


def test_predict_exported_runs_onnx_without_torch(exported, photos, tmp_path):
    path, _, predictor = exported["onnx"]
    images = [photos / name for name in ("portrait.png", "landscape.png")]
    flags = ["--confidence-threshold", "0", "--output", tmp_path / "out"]
    script, forbidden = ROOT / "tools" / "predict_exported.py", EXAMPLES["onnx_detect.py"][1]
    printed, ends = run(script, forbidden, [path, *images, *flags], cwd=tmp_path)
    assert ends == [0]
    assert "detections in 2 images" in printed
    check_predictions(tmp_path / "out", predictor, images)


@pytest.mark.parametrize("file_format", ["torchscript", "pt2"])
def test_predict_exported_runs_the_other_formats(
    predict_exported, exported, photos, tmp_path, file_format
):
    path, _, predictor = exported[file_format]
    images = [photos / name for name in ("portrait.png", "landscape.png", "turned.jpg")]
    flags = ["--confidence-threshold", "0", "--output", str(tmp_path)]
    assert predict_exported.main([str(path), *map(str, images), *flags]) == 0
    check_predictions(tmp_path, predictor, images)


def test_confidence_threshold_and_equal_names(predict_exported, exported, photos, tmp_path):
    path, _, predictor = exported["torchscript"]
    twin = tmp_path / "portrait.png"
    twin.write_bytes((photos / "portrait.png").read_bytes())
    everything = predictor(twin).scores
    thresh = float(everything.median())
    flags = ["--confidence-threshold", str(thresh), "--output", str(tmp_path / "out")]
    images = [str(photos / "portrait.png"), str(twin)]
    assert predict_exported.main([str(path), *images, *flags]) == 0
    coco = COCO(tmp_path / "out" / "detections.json")
    for image_id in (1, 2):
        scores = [x["score"] for x in coco.loadAnns(coco.getAnnIds(image_id))]
        assert scores == sorted(scores, reverse=True)
        assert 0 < len(scores) < len(everything)
        assert scores[-1] >= thresh
    names = {path.name for path in (tmp_path / "out").rglob("*.*")}
    assert names == {"portrait.png", "detections.json"}
    assert len(list((tmp_path / "out").rglob("portrait.png"))) == 2


def test_the_demo_and_the_file_draw_and_write_the_same(
    predict_exported, exported, trained, photos, tmp_path
):
    """16-bit gray among them, in one pass and in tiles."""
    path = exported["torchscript"].path
    gray = np.asarray(Image.open(photos / "landscape.png").convert("L"))
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    Image.fromarray(gray).save(tmp_path / "gray8.png")
    images = [str(tmp_path / "gray16.png"), str(tmp_path / "gray8.png"), str(photos / "turned.jpg")]
    config = ["--config-file", str(trained / "torchscript.py"), "--weights"]
    config += [str(trained / "model.pth"), "--input", *images]
    for number, flags in enumerate(([], ["--tiles", "64", "--tile-overlap", "0.5"])):
        flags = ["--confidence-threshold", "0.3", *flags]
        ours, file = tmp_path / f"ours{number}", tmp_path / f"file{number}"
        assert predict.main([*config, "--output", str(ours), *flags]) == 0
        assert predict_exported.main([str(path), *images, "--output", str(file), *flags]) == 0
        found, expected = (json.loads((x / "detections.json").read_text()) for x in (file, ours))
        assert found["images"] == expected["images"]
        assert found["categories"] == expected["categories"] == CATEGORIES
        assert len(found["annotations"]) == len(expected["annotations"]) > 3
        for x, y in zip(found["annotations"], expected["annotations"]):
            assert (x["image_id"], x["category_id"]) == (y["image_id"], y["category_id"])
            np.testing.assert_allclose(x["bbox"], y["bbox"], atol=1e-2)
        by_image = [[x["bbox"] for x in found["annotations"] if x["image_id"] == i] for i in (1, 2)]
        assert by_image[0] == by_image[1]  # 16 bits or 8 make no difference
        for name in ("gray16.png", "turned.jpg"):
            first, second = (np.asarray(Image.open(x / name)).astype(int) for x in (ours, file))
            # A box that lies between two pixels may be drawn on either of them.
            assert (np.abs(first - second) > 60).any(axis=2).mean() < 0.01


def test_names_and_ids_are_in_the_file(exported):
    for file_format, (path, _, _) in exported.items():
        metadata = load_exported(path).metadata
        assert metadata.class_names == toy.CLASSES, file_format
        assert metadata.category_ids == (1, 2), file_format


def test_the_most_detections_and_tiles(predict_exported, exported, photos, tmp_path, capsys):
    path = str(exported["torchscript"].path)
    flags = [path, str(photos / "portrait.png"), "--confidence-threshold", "0", "--output"]
    assert predict_exported.main([*flags, str(tmp_path / "one")]) == 0
    message = capsys.readouterr().err
    content = json.loads((tmp_path / "one" / "detections.json").read_text())
    assert ("warning: " in message) == (len(content["annotations"]) == 100)

    class Full(predict_exported.ExportedDetector):
        def __init__(self, path):
            super().__init__(path)
            self.max_detections = len(content["annotations"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_exported, "ExportedDetector", Full)
        assert predict_exported.main([*flags, str(tmp_path / "two")]) == 0
    message = capsys.readouterr().err
    assert f"portrait.png' has {len(content['annotations'])} detections, the most that" in message
    assert "use --tiles, or export it again with model.max_detections_per_image=1000" in message


def test_unknown_names_are_said(predict_exported, exported, photos, tmp_path, capsys):
    class Nameless(predict_exported.ExportedDetector):
        def __init__(self, path):
            super().__init__(path)
            self.has_names = False

    flags = [str(exported["torchscript"].path), str(photos / "portrait.png")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_exported, "ExportedDetector", Nameless)
        assert predict_exported.main([*flags, "--output", str(tmp_path)]) == 0
    assert "warning: the names of the classes are unknown to the file" in capsys.readouterr().err


def test_an_interrupted_run_leaves_what_was_done(
    predict_exported, exported, photos, tmp_path, capsys
):
    class Interrupted(predict_exported.ExportedDetector):
        num_calls = 0

        def detect(self, images):
            Interrupted.num_calls += 1
            if Interrupted.num_calls == 2:
                raise KeyboardInterrupt
            return super().detect(images)

    flags = [str(exported["torchscript"].path), str(photos), "--output", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_exported, "ExportedDetector", Interrupted)
        assert predict_exported.main(flags) == 130
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 1


def test_wrong_command_lines(predict_exported, exported, photos, tmp_path, capsys):
    path, image = str(exported["torchscript"].path), str(photos / "portrait.png")
    for flags, message in [
        ([path, "none.png"], "'none.png' does not exist"),
        ([path, image, "--output", image], "is a file, not a folder"),
        ([path, image, "--output", str(photos)], "--output would overwrite the image"),
        ([path, image, "--tile-overlap", "0.1"], "--tile-overlap is for --tiles: give both"),
        ([path, "--tiles", image], "must be a whole number between 32 and 1000000"),
        ([path, image, "--image-ids", "none.json"], "--image-ids 'none.json' does not exist"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            predict_exported.main([*flags])
        assert message in capsys.readouterr().err


def test_wrong_files_are_named(predict_exported, exported, trained, photos, tmp_path, capsys):
    image, output = str(photos / "portrait.png"), tmp_path / "out"
    (tmp_path / "text.onnx").write_text("no model")
    for model, message in (
        ("none.onnx", "there is no file 'none.onnx'"),
        (tmp_path / "text.onnx", "ONNX Runtime"),  # cannot run it, or is missing
        (photos / "portrait.png", "portrait.png' is not an exported detector"),
        (trained / "model.pth", "model.pth' is not an exported detector"),
    ):
        with pytest.raises(SystemExit, match="2"):
            predict_exported.main([str(model), image, "--output", str(output)])
        assert message in capsys.readouterr().err
    assert not output.exists()
    broken = tmp_path / "broken.png"
    broken.write_bytes((photos / "portrait.png").read_bytes()[:50])
    model = str(exported["torchscript"].path)
    assert predict_exported.main([model, str(broken), image, "--output", str(output)]) == 1
    assert f"error: cannot read '{broken}'" in capsys.readouterr().err
    results = json.loads((output / "detections.json").read_text())
    assert [x["file_name"] for x in results["images"]] == [image]


def test_files_without_nms_get_it_here(
    predict_exported, export_model, exported, trained, photos, tmp_path
):
    flags = ["--config-file", str(trained / "torchscript.py"), "--no-nms"]
    flags += ["--output", str(tmp_path), f"train.init_checkpoint={trained / 'model.pth'}"]
    assert export_model.main(flags) == 0
    image, output = photos / "portrait.png", tmp_path / "out"
    flags = ["--confidence-threshold", "0", "--output", str(output)]
    assert predict_exported.main([str(tmp_path / "model.ts"), str(image), *flags]) == 0
    check_predictions(output, exported["torchscript"].predictor, [image])


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    edge=st.integers(1, 200),
    max_size=st.none() | st.integers(1, 400),
)
def test_images_are_resized_as_by_detectron2(predict_exported, size, edge, max_size):
    limit = max_size or 10**9
    height, width = T.ResizeShortestEdge.get_output_shape(*size, edge, limit)
    if min(height, width) == 0 or max(height, width) > 2000:
        return
    metadata = json.loads(
        Metadata(
            class_names=("a",), input_format="RGB", shortest_edge=edge, max_size=max_size
        ).to_json()
    )
    image = np.zeros((*size, 3), np.uint8)
    assert predict_exported.prepare(image, metadata).shape == (1, 3, height, width)


@given(seed=st.integers(0, 1000), num=st.integers(0, 60), thresh=st.floats(0.1, 0.9))
def test_nms_is_that_of_the_model(seed, num, thresh):
    torch.manual_seed(seed)
    boxes, scores, classes = random_boxes(num), torch.rand(num), torch.randint(3, (num,))
    expected = batched_nms(boxes, scores, classes, thresh)
    found = nms(boxes.numpy(), scores.numpy(), classes.numpy(), thresh)
    assert found.tolist() == expected.tolist()
