"""TorchScript files: the same detections for other sizes and batches, by both methods."""

import numpy as np
import pytest
import torch
from torch import nn

from atss_d2.export.detector import ExportableDetector, to_precision
from atss_d2.export.metadata import Metadata
from atss_d2.export.runtime import load_exported
from atss_d2.export.torchscript import METHODS, export_torchscript
from atss_d2.modeling.box_coding import PointDistances
from tests.detector import build
from tests.exported import BATCHES, assert_same_detections, noise


@pytest.mark.parametrize("method", METHODS)
def test_detections_are_those_of_the_model(torchscript_files, model, metadata, method):
    exported = load_exported(torchscript_files[method])
    assert exported.format == "torchscript"
    assert exported.metadata == metadata
    for batch in BATCHES.values():
        assert_same_detections(exported(batch), model, batch)


@pytest.mark.parametrize(
    ("method", "dtype", "options"),
    [
        ("scripting", torch.float32, {"num_anchors": 9, "num_classes": 1}),
        ("scripting", torch.bfloat16, {"box2box_transform": PointDistances(anchor_scale=4)}),
        ("tracing", torch.bfloat16, {"num_anchors": 9, "num_classes": 1}),
        ("tracing", torch.float32, {"box2box_transform": PointDistances(anchor_scale=4)}),
    ],
)
def test_everything_else_at_once(tmp_path, method, dtype, options):
    """Several anchors or points, no NMS, a float32 input, half precision."""
    model = build(**options).eval()
    about = Metadata.from_model(model, class_names=["å", "b", "c"][: model.num_classes])
    sample = torch.zeros(1, 3, 20, 30)
    options = {"metadata": about, "method": method, "dtype": dtype, "with_nms": False}
    exported = load_exported(export_torchscript(model, sample, tmp_path / "m.ts", **options))
    name = str(dtype).removeprefix("torch.")
    assert exported.metadata == about.replace(input_dtype="float32", with_nms=False, dtype=name)
    detector = ExportableDetector(to_precision(model, dtype), with_nms=False)
    atol = 1e-4 if dtype == torch.float32 else 0.05
    for size in ((130, 71), (16, 200), (1, 1)):
        images = noise(*size)[None].float()
        found = exported(images)
        with torch.no_grad():
            expected = detector(images)
        assert found.boxes.shape == (1, 2 * model.test_topk_candidates, 4)
        num = min(int(found.num_detections[0]), int(expected[3]))
        if dtype == torch.float32:
            assert num == found.num_detections[0] == int(expected[3])
            np.testing.assert_allclose(found.boxes, expected[0], atol=1e-2)
        np.testing.assert_allclose(found.scores[0, :num], expected[1][0, :num], atol=atol)
    assert next(model.parameters()).dtype == torch.float32


class HalvesBrightFeatures(nn.Module):
    """A head with a branch that depends on the image."""

    def __init__(self, head: nn.Module, limit: float) -> None:
        super().__init__()
        self.head = head
        self.limit = limit

    def forward(self, features: list[torch.Tensor]):
        if float(features[0].mean()) > self.limit:
            features = [x / 2 for x in features]
        return self.head(features)


def test_scripting_keeps_branches_that_tracing_would_lose(tmp_path):
    model = build().eval()
    dark, bright = noise(64, 96)[None] // 4, 255 - noise(64, 96)[None] // 4
    with torch.no_grad():
        means = [
            float(model.backbone(model.preprocess_image([{"image": x[0]}]).tensor)["p3"].mean())
            for x in (dark, bright)
        ]
    model.head = HalvesBrightFeatures(model.head, sum(means) / 2).eval()
    options = {"metadata": Metadata.from_model(model)}
    path = export_torchscript(model, dark, tmp_path / "m.ts", method="scripting", **options)
    file = load_exported(path)
    for images in (dark, bright):
        assert_same_detections(file(images), model, images)
    with pytest.raises(ValueError, match=r"looks at a value .*TorchScript with method scripting"):
        export_torchscript(model, dark, tmp_path / "traced.ts", method="tracing", **options)
    assert not (tmp_path / "traced.ts").exists()
