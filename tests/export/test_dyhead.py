"""DyHead in every format, for images of other sizes than the sample's."""

import pytest
import torch
from torch import nn

from atss_d2.export import load_exported
from atss_d2.modeling import DyHead
from tests.detector import CHANNELS, ToyBackbone, build, toy_head
from tests.exported import BATCHES, assert_same_detections, written


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
