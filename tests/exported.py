"""A detector that finds what one paints, images for it, and exported files compared with models."""

import numpy as np
import pytest
import torch
import torch.fx.experimental._config as fx_config
from detectron2.structures import Boxes, pairwise_iou
from torch import nn

from atss_d2.export import Metadata, export_onnx, export_pt2, export_torchscript
from tests.detector import build

# A graph for images of all sizes, of which both .pt2 and .onnx files are made.
EXPORTS_GRAPHS = hasattr(fx_config, "backed_size_oblivious")
needs_graphs = pytest.mark.skipif(not EXPORTS_GRAPHS, reason="such graphs need torch 2.7 or newer")

BLOCK = 8  # pixels; a cell of the finest level


def spot_detector(num_classes=3, **options):
    """A detector that finds an object of class k where channel k is bright.

    Boxes and centerness come from a tower of random weights with GroupNorm.
    """
    model = build(
        num_classes=num_classes,
        test_nms_thresh=0.5,
        pixel_mean=[128.0] * 3,
        pixel_std=[64.0] * 3,
        **options,
    )
    with torch.no_grad():
        stem, down, head = model.backbone.stem, model.backbone.down, model.head
        for x in (stem.weight, stem.bias, down.weight, down.bias):
            x[:3] = 0
        for k in range(3):
            stem.weight[k, k] = 1 / BLOCK**2
            down.weight[k, k, 1, 1] = 1  # the second level sees every other cell
        head.cls_subnet = nn.Sequential()
        head.cls_score.weight[:] = 0
        for i in range(len(head.cls_score.weight)):
            head.cls_score.weight[i, i % num_classes, 1, 1] = 4
        head.cls_score.bias[:] = -4  # black gives a score of 6e-6, white one of 0.98
        head.bbox_pred.weight[:] *= 0.3
    return model.eval()


def noise(height, width, seed=0):
    """(3, H, W) uint8: hundreds of spots of all brightnesses."""
    generator = torch.Generator().manual_seed(seed)
    cells = (3, -(-height // BLOCK), -(-width // BLOCK))
    levels = torch.randint(0, 230, cells, generator=generator)
    image = levels.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    image = image + torch.randint(0, 26, image.shape, generator=generator)
    return image[:, :height, :width].to(torch.uint8).contiguous()


def written(model, kind, folder):
    """The path of an exported file; kind: "scripting", "tracing", "pt2" or "onnx"."""
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


def spots(height, width, *cells):
    """(3, H, W) uint8: black, but for cells (channel, row, column)."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for channel, row, column in cells:
        y, x = BLOCK * row, BLOCK * column
        image[channel, y : y + BLOCK, x : x + BLOCK] = 250
    return image


# Batches of (N, 3, H, W). The sample of an export has another size than any of them.
BATCHES = {
    "none": torch.stack([spots(64, 96)]),
    "one": torch.stack([spots(64, 96, (0, 3, 5))]),
    "more than fit": torch.stack([noise(129, 161)]),
    "a pixel beyond multiples": torch.stack([noise(65, 97)]),
    "three": torch.stack([noise(129, 161, seed=1), spots(129, 161), noise(129, 161, seed=2)]),
    "one after three": torch.stack([spots(72, 40, (1, 1, 3), (2, 7, 1))]),
    "less than a cell": torch.stack([noise(5, 3), 255 - noise(5, 3)]),
    "a pixel": torch.full((1, 3, 1, 1), 255, dtype=torch.uint8),
    "a line": torch.stack([noise(1, 300)]),
}


def assert_same_detections(found, model, images, box_atol=1e-2, score_atol=1e-4):
    """Boxes, scores, classes and numbers are those of a model, matched by IoU, score and class.

    Equal scores may come in any order. Returns how many detections each image has.
    """
    boxes, scores, classes, numbers = (torch.as_tensor(np.asarray(x)) for x in found)
    with torch.no_grad():
        expected = [x["instances"] for x in model([{"image": x} for x in images])]
    counts = [len(x) for x in expected]
    assert numbers.tolist() == counts
    places = model.max_detections_per_image
    assert boxes.shape == (len(images), places, 4)
    assert scores.shape == classes.shape == (len(images), places)
    assert (boxes.dtype, scores.dtype) == (torch.float32, torch.float32)
    assert classes.dtype == numbers.dtype == torch.int64
    for i, instances in enumerate(expected):
        n = counts[i]
        assert (boxes[i, n:] == 0).all()
        assert (scores[i, n:] == 0).all()
        assert (classes[i, n:] == -1).all()
        assert (scores[i, :n].diff() <= 0).all()
        if n == 0:
            continue
        likeness = pairwise_iou(Boxes(boxes[i, :n]), instances.pred_boxes)
        likeness -= 10 * (scores[i, :n, None] - instances.scores).abs()  # a box may be there twice
        likeness[classes[i, :n, None] != instances.pred_classes] = -99
        partners = likeness.argmax(dim=1)
        assert sorted(partners.tolist()) == list(range(n))
        instances = instances[partners]
        assert torch.equal(classes[i, :n], instances.pred_classes)
        torch.testing.assert_close(boxes[i, :n], instances.pred_boxes.tensor, rtol=0, atol=box_atol)
        torch.testing.assert_close(scores[i, :n], instances.scores, rtol=0, atol=score_atol)
    return counts
