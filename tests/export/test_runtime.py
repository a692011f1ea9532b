"""Files are recognized by their content, and images checked at the door."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from atss_d2.export import Detections, Metadata, load_exported
from atss_d2.export.runtime import ExportedDetector
from tests.exported import BATCHES, EXPORTS_GRAPHS, needs_graphs


class Remembers(ExportedDetector):
    """Gives nothing, keeps what it is given."""

    format = "none"

    def __init__(self, **fields):
        self.metadata = Metadata(class_names=("a",), input_format="BGR", **fields)

    def _run(self, images):
        self.images = images
        return [torch.zeros(1, 1, 4), torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1)]


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_images_of_both_kinds(kind):
    exported = Remembers(input_dtype="float32")
    found = exported(np.full((1, 3, 2, 4), 7, kind)[..., ::2])
    assert isinstance(found, Detections)
    assert isinstance(found.boxes, np.ndarray)
    assert exported.images.dtype == np.float32
    assert exported.images.flags.c_contiguous
    exported(torch.full((1, 3, 2, 2), 7, dtype=torch.uint8))
    np.testing.assert_array_equal(exported.images, np.full((1, 3, 2, 2), 7))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"shape \(N, 3, height, width\), got \(3, 8, 8\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"got \(1, 8, 8, 3\)"),
        (np.zeros((0, 3, 8, 8), np.uint8), r"at least one, .* got shape \(0, 3, 8, 8\)"),
        (np.zeros((1, 3, 8, 4), np.uint8), r"of 5 x 5 pixels or more, got shape \(1, 3, 8, 4\)"),
        (np.zeros((1, 3, 8, 8), np.float32), "takes uint8 images, got float32: round them"),
        (np.zeros((1, 3, 8, 8)), "must be uint8 or float32, got float64"),
    ],
    ids=str,
)
def test_other_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        Remembers(min_size=5)(images)


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_exported(tmp_path / "none.onnx")
    torch.save({"model": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="a checkpoint is to be exported first"):
        load_exported(tmp_path / "checkpoint.pth")
    (tmp_path / "text.pt2").write_text("?")
    with pytest.raises(ValueError, match="not an exported detector, or it is damaged"):
        load_exported(tmp_path / "text.pt2")
    (tmp_path / "text.onnx").write_text("?")
    pytest.importorskip("onnxruntime")
    with pytest.raises(
        ValueError, match=r"'.*text\.onnx' is not a model that ONNX Runtime can run"
    ):
        load_exported(tmp_path / "text.onnx")


def test_a_cut_file_is_refused(pt2_file, tmp_path):
    content = pt2_file.read_bytes()
    (tmp_path / "cut.pt2").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged: export it again"):
        load_exported(tmp_path / "cut.pt2")


@needs_graphs
def test_a_program_of_torch_without_our_metadata_is_refused(tmp_path):
    program = torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1, 1),))
    torch.export.save(program, tmp_path / "linear.pt2")
    with pytest.raises(ValueError, match="was not exported by atss_d2"):
        load_exported(tmp_path / "linear.pt2")


_PROGRAMS = {
    "torch": """
import json, sys
import torch, torchvision
images = torch.load("images.pth")
for path in sys.argv[1:]:
    files = {"atss_d2": ""}
    if path.endswith(".ts"):
        program = torch.jit.load(path, _extra_files=files)
    else:
        program = torch.export.load(path, extra_files=files).module(check_guards=False)
    boxes, scores, classes, num = program(images)
    about = json.loads(files["atss_d2"])
    print(json.dumps([num.tolist(), boxes[0, 0].tolist(), about["class_names"]]))
print(json.dumps([name for name in ("atss_d2", "detectron2", "fvcore") if name in sys.modules]))
""",
    "onnxruntime": """
import json, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
about = json.loads(session.get_modelmeta().custom_metadata_map["atss_d2"])
outputs = ["boxes", "scores", "classes", "num_detections"]
boxes, scores, classes, num = session.run(outputs, {"images": numpy.load("images.npy")})
print(json.dumps([num.tolist(), boxes[0, 0].tolist(), about["class_names"]]))
print(json.dumps([name for name in ("torch", "atss_d2", "detectron2") if name in sys.modules]))
""",
}


@pytest.mark.parametrize("runtime", _PROGRAMS)
def test_other_programs_run_the_files_without_us(runtime, model, tmp_path, request):
    pytest.importorskip(runtime)
    if runtime == "torch":
        scripts = request.getfixturevalue("torchscript_files").values()
        paths = [*scripts, *([request.getfixturevalue("pt2_file")] if EXPORTS_GRAPHS else [])]
    else:
        paths = [request.getfixturevalue("onnx_file")]
    images = BATCHES["one"]
    torch.save(images, tmp_path / "images.pth")
    np.save(tmp_path / "images.npy", images.numpy())
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAMS[runtime], *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *outputs, forbidden = map(json.loads, result.stdout.splitlines())
    assert forbidden == []
    assert len(outputs) == len(paths)
    with torch.no_grad():
        (expected,) = model([{"image": images[0]}])
    for number, box, names in outputs:
        assert number == [1]
        assert names == ["spot", "Fleck", "пятно"]
        np.testing.assert_allclose(box, expected["instances"].pred_boxes.tensor[0], atol=1e-2)
