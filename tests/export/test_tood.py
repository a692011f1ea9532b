"""TOOD in every format, for images of other sizes than the sample's; and in several scales."""

import pytest
import torch

from atss_d2.export import load_exported
from atss_d2.export.detector import ExportableDetector, to_precision
from atss_d2.modeling import DenseDetectorWithTTA
from tests.exported import assert_same_detections, noise, written
from tests.tood import tood

# No black ones: what it finds there is equal everywhere, and any of it may win.
BATCHES = [
    *(noise(height, width)[None] for height, width in ((129, 161), (65, 97), (1, 300), (5, 3))),
    torch.stack([noise(129, 161, seed=1), noise(129, 161, seed=2)]),
]


@pytest.fixture(scope="module")
def model():
    return tood().eval()


@pytest.mark.parametrize("kind", ["scripting", "tracing", "pt2", "onnx"])
def test_detections_are_those_of_the_model(tmp_path, kind):
    model = tood(2 if kind == "scripting" else 1).eval()  # graphs take seconds a level
    exported = load_exported(written(model, kind, tmp_path))
    counts = [assert_same_detections(exported(x), model, x) for x in BATCHES]
    assert max(map(max, counts)) > 30


@torch.no_grad()
def test_half_precision_keeps_geometry(model):
    """Features are rounded, but neither positions nor the fusion of scores."""
    image = noise(129, 161)[None]
    half = ExportableDetector(to_precision(model, torch.bfloat16))
    maps = half.predict(half.prepare(image))
    assert {x.dtype for levels in maps for x in levels} == {torch.float32}
    assert half(image)[3] > 30


@torch.no_grad()
def test_several_scales_are_merged(model):
    image = {"image": noise(64, 96)}
    tta = DenseDetectorWithTTA(model, min_sizes=[64], flip=False, merge="nms", input_format="BGR")
    plain, found = (x([image])[0]["instances"] for x in (model, tta))
    assert len(found) == len(plain) > 20
    torch.testing.assert_close(found.pred_boxes.tensor, plain.pred_boxes.tensor)
    tta = DenseDetectorWithTTA(model, min_sizes=[64, 96])
    assert len(tta([image])[0]["instances"]) > 20
