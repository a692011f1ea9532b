"""Score voting and a threshold on the score, in files of all formats."""

import pytest
import torch

from atss_d2.export import Metadata, export_onnx, export_pt2, export_torchscript, load_exported
from tests.exported import (
    BATCHES,
    EXPORTS_GRAPHS,
    assert_same_detections,
    noise,
    spot_detector,
)

EXPORTERS = {"torchscript": export_torchscript, "pt2": export_pt2, "onnx": export_onnx}


@pytest.mark.parametrize("name", EXPORTERS)
def test_detections_are_those_of_the_model(name, tmp_path):
    if name != "torchscript" and not EXPORTS_GRAPHS:
        pytest.skip("such files need torch 2.7 or newer")
    if name == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    options = {"score_voting": 0.5, "test_thresh_on": "score", "test_score_thresh": 0.3}
    torch.manual_seed(0)
    model = spot_detector(**options)
    path = tmp_path / {"torchscript": "m.ts", "pt2": "m.pt2", "onnx": "m.onnx"}[name]
    EXPORTERS[name](model, noise(80, 80)[None], path, metadata=Metadata.from_model(model))
    exported = load_exported(path)
    counts = [assert_same_detections(exported(x), model, x) for x in BATCHES.values()]
    assert sum(map(sum, counts)) > 50
    # They are others than without.
    images = BATCHES["more than fit"]
    with torch.no_grad():
        (voted,) = model([{"image": images[0]}])
        model.score_voting = None
        (plain,) = model([{"image": images[0]}])
    moved = voted["instances"].pred_boxes.tensor - plain["instances"].pred_boxes.tensor
    assert moved.abs().max() > 0.1
    boxes = torch.as_tensor(exported(images).boxes)[0, : len(moved)]
    assert (boxes - plain["instances"].pred_boxes.tensor).abs().max() > 0.1
