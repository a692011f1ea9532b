"""Files are recognised by their content, and images checked at the door."""

import numpy as np
import pytest
import torch

from atss_d2.export import Detections, Metadata, load_exported
from atss_d2.export.runtime import ExportedDetector
from tests.exported import BATCHES, needs_graphs


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


def test_formats_are_told_apart_by_content(pt2_file, tmp_path):
    renamed = tmp_path / "model.bin"
    renamed.write_bytes(pt2_file.read_bytes())
    exported = load_exported(renamed)
    assert exported.format == "pt2"
    assert exported(BATCHES["one"]).num_detections.tolist() == [1]


def test_files_of_others_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_exported(tmp_path / "none.onnx")
    torch.save({"model": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="a checkpoint is to be exported first"):
        load_exported(tmp_path / "checkpoint.pth")
    (tmp_path / "text.pt2").write_text("?")
    with pytest.raises(ValueError, match="no exported detector, or it is damaged"):
        load_exported(tmp_path / "text.pt2")
    (tmp_path / "text.onnx").write_text("?")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=r"'.*text\.onnx' is no model that ONNX Runtime can run"):
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
