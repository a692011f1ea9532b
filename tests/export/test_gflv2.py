"""GFLv2, and so the coder of distributions, in every format, for images of other sizes."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from atss_d2.export import load_exported
from atss_d2.modeling import DistanceDistributions, GFLv2Head, SoftTargetCriterion
from tests.detector import CHANNELS, build
from tests.exported import assert_same_detections, noise, written

# No black ones: what it finds there is equal everywhere, and any of it may win.
BATCHES = [
    *(noise(height, width)[None] for height, width in ((129, 161), (65, 97), (1, 300), (5, 3))),
    torch.stack([noise(129, 161, seed=1), noise(129, 161, seed=2)]),
]


def gflv2(num_levels):
    torch.manual_seed(0)
    shapes = [ShapeSpec(channels=CHANNELS)] * num_levels
    head = GFLv2Head(input_shape=shapes, num_classes=3, conv_dims=[CHANNELS])
    for conv in (head.quality[0], head.quality[2]):
        torch.nn.init.normal_(conv.weight, std=0.5)  # so that the quality is not 0.5 everywhere
    coder = DistanceDistributions(anchor_scale=4)
    model = build(num_levels, head=head, box2box_transform=coder, criterion=SoftTargetCriterion())
    torch.nn.init.zeros_(head.cls_score.bias)
    torch.nn.init.constant_(head.quality[2].bias, 3)
    torch.nn.init.normal_(head.bbox_pred.weight, std=0.05)
    with torch.no_grad():  # short distances, so that NMS leaves many boxes
        head.bbox_pred.bias.copy_(-torch.arange(17.0).repeat(4))
    return model.eval()


@pytest.mark.parametrize("kind", ["scripting", "tracing", "pt2", "onnx"])
def test_detections_are_those_of_the_model(tmp_path, kind):
    model = gflv2(2 if kind == "scripting" else 1)  # graphs take seconds a level
    exported = load_exported(written(model, kind, tmp_path))
    counts = [assert_same_detections(exported(x), model, x) for x in BATCHES]
    assert max(map(max, counts)) > 30
