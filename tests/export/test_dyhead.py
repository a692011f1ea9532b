"""DyHead in every format, for images of other sizes than the sample's."""

import pytest
import torch
from torch import nn

from atss_d2.export import Metadata, export_onnx, export_pt2, export_torchscript, load_exported
from atss_d2.modeling import DyHead
from tests.detector import CHANNELS, ToyBackbone, build, toy_head
from tests.exported import BATCHES, EXPORTS_GRAPHS, assert_same_detections, noise


def detector(reading):
    """Two levels of odd sizes, whose offsets are a fraction of a cell."""
    torch.manual_seed(0)
    backbone = DyHead(
        backbone=ToyBackbone(num_levels=2),
        channels=CHANNELS,
        num_blocks=1,
        offsets_of_upper_level=reading,
    )
    for name, parameter in backbone.blocks.named_parameters():
        if "offset" in name:
            nn.init.normal_(parameter, std=0.02)
    return build(backbone=backbone, head=toy_head(pred_kernel_size=1)).eval()


def written(model, kind, folder):
    sample, about = noise(80, 80)[None], Metadata.from_model(model)
    if kind in ("scripting", "tracing"):
        path = folder / "m.ts"
        return export_torchscript(model, sample, path, metadata=about, method=kind)
    if not EXPORTS_GRAPHS:
        pytest.skip("such graphs need torch 2.7 or newer")
    if kind == "pt2":
        return export_pt2(model, sample, folder / "m.pt2", metadata=about)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    return export_onnx(model, sample, folder / "m.onnx", metadata=about)


@pytest.mark.parametrize(
    ("kind", "reading"),
    [
        *(("scripting", "flattened"), ("tracing", "flattened"), ("pt2", "flattened")),
        *(("onnx", "flattened"), ("onnx", "resize")),
    ],
)
def test_detections_are_those_of_the_model(tmp_path, kind, reading):
    model = detector(reading)
    exported = load_exported(written(model, kind, tmp_path))
    counts = [assert_same_detections(exported(x), model, x) for x in BATCHES.values()]
    assert max(map(max, counts)) > 30
