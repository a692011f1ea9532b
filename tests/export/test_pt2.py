"""torch.export: images of all sizes, in a program without us."""

import shutil

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
    """Loaded under another name: formats are told apart by content."""
    return load_exported(shutil.copy(pt2_file, pt2_file.with_name("model.bin")))


def test_detections_are_those_of_the_model(exported, model, metadata):
    assert exported.format == "pt2"
    assert exported.metadata == metadata
    for batch in BATCHES.values():
        assert_same_detections(exported(batch), model, batch)


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
