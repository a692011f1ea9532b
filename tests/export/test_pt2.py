"""torch.export: images of all sizes, in a program without us."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from atss_d2.export import Metadata, export_pt2, load_exported, pt2
from atss_d2.export.detector import ExportableDetector
from atss_d2.export.pt2 import export_program
from tests.detector import build
from tests.exported import BATCHES, assert_same_detections, needs_graphs, noise

pytestmark = needs_graphs


@pytest.fixture(scope="module")
def exported(pt2_file):
    return load_exported(pt2_file)


@pytest.mark.parametrize("name", BATCHES)
def test_detections_are_those_of_the_model(exported, model, name):
    assert_same_detections(exported(BATCHES[name]), model, BATCHES[name])


def test_metadata(exported, metadata):
    assert exported.format == "pt2"
    assert exported.metadata == metadata


_PROGRAM = """
import json, sys
import torch, torchvision
files = {"atss_d2": ""}
program = torch.export.load(sys.argv[1], extra_files=files)
boxes, scores, classes, num = program.module(check_guards=False)(torch.load(sys.argv[2]))
print(json.dumps([num.tolist(), boxes[0, 0].tolist(), json.loads(files["atss_d2"])["class_names"]]))
print(json.dumps([name for name in ("atss_d2", "detectron2", "fvcore") if name in sys.modules]))
"""


def test_another_program_runs_it_without_us(pt2_file, model, tmp_path):
    images = BATCHES["one"]
    torch.save(images, tmp_path / "images.pth")
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, pt2_file, tmp_path / "images.pth"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (number, box, names), forbidden = map(json.loads, result.stdout.splitlines())
    assert forbidden == []
    assert number == [1]
    assert names == ["spot", "Fleck", "пятно"]
    with torch.no_grad():
        (expected,) = model([{"image": images[0]}])
    np.testing.assert_allclose(box, expected["instances"].pred_boxes.tensor[0], atol=1e-2)


def test_type_of_sample_and_network_are_those_of_the_file(tmp_path):
    model = build(num_levels=1, num_classes=1).eval()
    sample = torch.zeros(1, 3, 20, 20)
    path = export_pt2(
        model,
        sample,
        tmp_path / "m.pt2",
        metadata=Metadata.from_model(model),
        with_nms=False,
        dtype=torch.bfloat16,
    )
    exported = load_exported(path)
    about = exported.metadata
    assert (about.input_dtype, about.dtype, about.with_nms) == ("float32", "bfloat16", False)
    images = noise(70, 40)[None]
    found = exported(images)  # uint8 becomes float32
    assert found.boxes.shape == (1, 1000, 4)
    assert found.num_detections[0] > 5
    np.testing.assert_array_equal(found.boxes, exported(images.float()).boxes)
    assert {x.dtype for x in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "m.onnx"}, r"'m\.onnx' must end in \.pt2"),
        ({"sample": torch.zeros(2, 3, 8, 8)}, r"shape \(1, 3, height, width\), got \(2, 3, 8, 8\)"),
        ({"sample": torch.zeros(1, 3, 0, 8)}, r"got \(1, 3, 0, 8\)"),
        (
            {"sample": torch.zeros(1, 3, 8, 8).double()},
            "uint8 or float32 tensor, got torch.float64",
        ),
        ({"sample": np.zeros((1, 3, 8, 8))}, "got ndarray"),
        ({"dtype": torch.float16}, "pt2 on cpu runs backbone and head .* got torch.float16"),
        ({"model": build()}, r"call model\.eval\(\)"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(
    model, metadata, sample, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    arguments = {"model": model, "sample": sample, "path": "m.pt2", **change}
    with pytest.raises(ValueError, match=message):
        export_pt2(**arguments, metadata=metadata)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_at_once(model, metadata, sample, tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("earlier")
    monkeypatch.setattr("atss_d2.export.pt2.export_program", lambda *_, **__: None)

    def save(program, file, **_):
        file.write(b"half")
        raise RuntimeError("disk full")

    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(RuntimeError, match="disk full"):
        export_pt2(model, sample, path, metadata=metadata)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_torch_that_exports_no_loop_over_images(model, monkeypatch):
    monkeypatch.setattr(pt2, "_exports_loops", lambda: False)  # as on torch 2.11
    images = noise(64, 96)[None].repeat(3, 1, 1, 1)
    program = export_program(model, images[:1]).module(check_guards=False)
    images[1] = images[1].flip(-1)
    for one, other in zip(program(images), ExportableDetector(model)(images)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
