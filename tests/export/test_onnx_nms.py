"""ONNX's own NMS, for some images and any number of classes at once."""

import numpy as np
import pytest
import torch
import torch.fx.experimental._config as fx_config
from torch.export import Dim

from atss_d2.export.onnx import _quiet
from atss_d2.export.onnx_nms import onnx_kept_by_nms, onnx_translations
from atss_d2.modeling.nms import kept_by_nms
from tests.exported import needs_graphs

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = needs_graphs


class NMS(torch.nn.Module):
    def __init__(self, num_classes, iou_thresh):
        super().__init__()
        self.kept, self.iou_thresh = onnx_kept_by_nms(num_classes), iou_thresh

    def forward(self, boxes, scores, classes):
        return self.kept(boxes, scores, classes, scores > -1, self.iou_thresh)


def export(num_classes, iou_thresh):
    example = (torch.zeros(2, 7, 4), torch.zeros(2, 7), torch.zeros(2, 7, dtype=torch.int64))
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    with fx_config.patch(backed_size_oblivious=True), _quiet():
        program = torch.export.export(
            NMS(num_classes, iou_thresh), example, dynamic_shapes=(sizes, sizes, sizes)
        )
        proto = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=20,
            verbose=False,
            input_names=["boxes", "scores", "classes"],
            custom_translation_table=onnx_translations(),
        ).model_proto
    assert [x.op_type for x in proto.graph.node].count("NonMaxSuppression") == 1
    session = onnxruntime.InferenceSession(proto.SerializeToString())

    def run(boxes, scores, classes):
        inputs = {"boxes": boxes, "scores": scores, "classes": classes}
        (kept,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        return torch.from_numpy(np.asarray(kept))

    return run


def scene(num_images, count, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 100, (num_images, count, 2), generator=generator)
    sides = torch.randint(1, 60, (num_images, count, 2), generator=generator)
    boxes = torch.cat((corners, corners + sides), dim=2).float()
    boxes[:, -1] = torch.tensor([1200.0, 700, 1333, 800])
    scores = torch.rand(num_images, count, generator=generator)
    scores[torch.rand(num_images, count, generator=generator) < 0.2] = -1
    classes = torch.randint(0, num_classes, (num_images, count), generator=generator)
    return boxes, scores, classes


@pytest.mark.parametrize(("num_classes", "iou_thresh"), [(1, 0.6), (3, 0.0), (20_000, 1.0)])
def test_keeps_what_the_model_keeps(num_classes, iou_thresh):
    run = export(num_classes, iou_thresh)
    for num_images, count in ((1, 300), (3, 200), (1, 1), (2, 1)):
        boxes, scores, classes = scene(num_images, count, min(num_classes, 9))
        classes = classes * (num_classes // min(num_classes, 9))
        classes[:, 0] = num_classes - 1
        expected = kept_by_nms(boxes, scores, classes, scores > -1, iou_thresh)
        assert torch.equal(run(boxes, scores, classes), expected)
        assert torch.equal(NMS(num_classes, iou_thresh)(boxes, scores, classes), expected)
    nothing = torch.full_like(scores, -1.0)
    assert not run(boxes, nothing, classes).any()


def test_a_batch_costs_what_its_images_cost():
    """Without a shape of the square of the batch: as many pairs of boxes as an image has."""
    for num_classes in (64, 65, 80, 1203):
        kept = onnx_kept_by_nms(num_classes)
        boxes, scores, classes = scene(4, 50, num_classes)
        found = kept(boxes, scores, classes, scores > -1, 0.5)
        for i in range(4):
            alone = kept(*(x[i : i + 1] for x in (boxes, scores, classes, scores > -1)), 0.5)
            assert torch.equal(found[i : i + 1], alone)
