"""VFNet in every format, for images of other sizes than the sample's; and in several scales."""

import pytest
import torch

from atss_d2.export import load_exported
from atss_d2.export.detector import ExportableDetector, to_precision
from atss_d2.modeling import DenseDetectorWithTTA
from tests.exported import assert_same_detections, noise, written
from tests.vfnet import toy_head, toy_vfnet

# No black ones: what it finds there is equal everywhere, and any of it may win.
BATCHES = [
    *(noise(height, width)[None] for height, width in ((129, 161), (65, 97), (1, 300), (1, 1))),
    torch.stack([noise(129, 161, seed=1), noise(129, 161, seed=2)]),
]


@pytest.fixture(scope="module")
def model():
    return toy_vfnet().eval()


@pytest.mark.parametrize(
    ("kind", "num_levels"), [("scripting", 2), ("tracing", 2), ("pt2", 1), ("onnx", 1)]
)
def test_detections_are_those_of_the_model(tmp_path, kind, num_levels):
    """Graphs are of one level, as each takes seconds to export."""
    model = toy_vfnet(num_levels=num_levels, head=toy_head(num_levels)).eval()
    exported = load_exported(written(model, kind, tmp_path))
    counts = [assert_same_detections(exported(x), model, x) for x in BATCHES]
    assert max(map(max, counts)) > 30


@torch.no_grad()
def test_half_precision_keeps_distances(model):
    """Only the features and the scores are rounded."""
    image = noise(129, 161)[None]
    half = ExportableDetector(to_precision(model, torch.bfloat16))
    logits, distances = half.predict(half.prepare(image))
    assert {x.dtype for x in logits} == {torch.bfloat16}
    assert {x.dtype for x in distances} == {torch.float32}
    assert half(image)[3] > 30


def test_several_scales_are_merged(model):
    tta = DenseDetectorWithTTA(model, min_sizes=[64, 96])
    (found,) = tta([{"image": noise(64, 96)}])
    assert len(found["instances"]) > 0
