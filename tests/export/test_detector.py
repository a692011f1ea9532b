"""The detector that is exported detects what the model does, before any exporter is called."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes

from atss_d2.export import ExportableDetector
from atss_d2.export.detector import to_precision
from atss_d2.modeling import ATSSHead
from atss_d2.modeling.anchor_generator import ShiftedAnchorGenerator
from atss_d2.modeling.box_coding import PointDistances, TwoSidedBox2BoxTransform
from atss_d2.modeling.nms import batched_nms
from tests.detector import CHANNELS, ToyBackbone, build
from tests.exported import BATCHES, assert_same_detections, noise, spot_detector, spots


def head(num_anchors=1, num_classes=3, **options):
    return ATSSHead(
        input_shape=[ShapeSpec(channels=CHANNELS)] * 2,
        num_classes=num_classes,
        num_anchors=num_anchors,
        conv_dims=[CHANNELS],
        **options,
    )


def shifted_anchors():
    return ShiftedAnchorGenerator(
        sizes=[[32], [64]], aspect_ratios=[1.0], strides=[8, 16], offset=0.5, center_shift=0.5
    )


MODELS = {
    "toy": lambda: build(),
    "one class": lambda: build(num_classes=1),
    "80 classes": lambda: build(num_classes=80, test_score_thresh=0.3),
    "nine anchors": lambda: build(num_anchors=9),
    "one level": lambda: build(num_levels=1),
    "points": lambda: build(box2box_transform=PointDistances(anchor_scale=4, inset=0.5)),
    "clamped deltas": lambda: build(
        box2box_transform=TwoSidedBox2BoxTransform((10.0, 10.0, 5.0, 5.0))
    ),
    "shifted anchors": lambda: build(anchor_generator=shifted_anchors()),
    "no centerness": lambda: build(head=head(with_centerness=False)),
    "deformable": lambda: build(head=head(deform_last_conv=True)),
    "product": lambda: build(test_score_type="product"),
    "ranked by class": lambda: build(test_rank_by="class_score", test_topk_candidates=20),
    "few candidates": lambda: build(test_topk_candidates=7),
    "few detections": lambda: build(max_detections_per_image=5),
    "more places than candidates": lambda: build(
        test_topk_candidates=5, max_detections_per_image=50
    ),
    "no threshold": lambda: build(test_score_thresh=0.0, test_nms_thresh=1.0),
    "no overlap": lambda: build(test_nms_thresh=0.0),
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_detections_are_those_of_the_model(name):
    model = MODELS[name]().eval()
    detector = ExportableDetector(model)
    counts = []
    two = torch.stack([noise(65, 97, seed) for seed in range(2)]).float()
    for batch in (noise(64, 96)[None], two, BATCHES["less than a cell"]):
        counts += assert_same_detections(detector(batch), model, batch, 1e-4, 1e-6)
    assert sum(counts) > 10


@torch.no_grad()
def test_numbers_of_detections():
    model = spot_detector()
    detector = ExportableDetector(model)
    counts = {
        name: assert_same_detections(detector(batch), model, batch, 1e-4, 1e-6)
        for name, batch in BATCHES.items()
    }
    expected = {"none": [0], "one": [1], "more than fit": [100], "three": [100, 0, 100]}
    expected |= {"one after three": [2], "a pixel": [0]}  # whose cell is padding but for it
    assert counts == {**counts, **expected}


@torch.no_grad()
def test_candidates_become_the_detections_of_the_model():
    model = spot_detector()
    detector = ExportableDetector(model, with_nms=False)
    images = torch.stack([noise(129, 161), spots(129, 161, (1, 2, 3))])
    boxes, scores, classes, numbers = detector(images)
    assert boxes.shape == (2, 2 * model.test_topk_candidates, 4)
    for i in range(2):
        n = int(numbers[i])
        assert (scores[i, :n].diff() <= 0).all()
        assert (scores[i, n:] == 0).all()
        assert (classes[i, n:] == -1).all()
        assert (boxes[i, n:] == 0).all()
        keep = batched_nms(boxes[i, :n], scores[i, :n], classes[i, :n], model.test_nms_thresh)
        instances = model([{"image": images[i]}])[0]["instances"]
        torch.testing.assert_close(boxes[i, keep[:100]], instances.pred_boxes.tensor)
        torch.testing.assert_close(scores[i, keep[:100]], instances.scores)
        assert torch.equal(classes[i, keep[:100]], instances.pred_classes)
    assert numbers[0] > 400
    assert numbers[1] == 1


@torch.no_grad()
def test_boxes_without_area_are_dropped_after_the_best_are_taken():
    """As Detectron2 does; a box beyond the image is clipped to its border."""
    model = build(test_score_thresh=0.0, test_nms_thresh=1.0).eval()
    model.head.bbox_pred.weight[:] *= 10  # many boxes lie outside
    images = noise(40, 60)[None]
    (count,) = assert_same_detections(ExportableDetector(model)(images), model, images)
    assert 0 < count < 100


@pytest.mark.parametrize("sizes", [[(7, 9), (4, 5)], [(1, 1), (1, 1)], [(3, 200), (2, 100)]])
@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("kind", [DefaultAnchorGenerator, ShiftedAnchorGenerator])
def test_anchors_are_those_of_the_generator_to_the_last_bit(sizes, offset, kind):
    options = {} if kind is DefaultAnchorGenerator else {"center_shift": 0.5}
    model = build(
        anchor_generator=kind(
            sizes=[[30.5], [61]], aspect_ratios=[0.7], strides=[8, 16], offset=offset, **options
        )
    )
    maps = [torch.zeros(1, 1, *size) for size in sizes]
    expected = Boxes.cat(model.anchor_generator(maps)).tensor
    assert torch.equal(torch.cat(ExportableDetector(model.eval())._anchors(maps)), expected)


def test_half_precision_is_for_backbone_and_head_only():
    model = build().eval()
    half = to_precision(model, torch.bfloat16)
    assert {x.dtype for x in half.parameters()} == {torch.bfloat16}
    assert {x.dtype for x in half.buffers()} == {torch.float32}  # pixel mean, anchors
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    with torch.no_grad():
        boxes, scores, _, numbers = ExportableDetector(half)(noise(64, 96)[None])
        expected = model([{"image": noise(64, 96)}])[0]["instances"]
    assert boxes.dtype == scores.dtype == torch.float32
    assert abs(int(numbers) - len(expected)) < 10
    torch.testing.assert_close(scores[0, :10], expected.scores[:10], rtol=0, atol=0.02)


class OtherAnchors(DefaultAnchorGenerator):
    def _grid_anchors(self, grid_sizes):
        return [2 * anchors for anchors in super()._grid_anchors(grid_sizes)]


class SquareBackbone(ToyBackbone):
    @property
    def padding_constraints(self):
        return {"square_size": 640}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: torch.nn.Linear(1, 1), "can export an ATSS, got Linear"),
        (lambda: build(), r"evaluation mode can be exported: call model\.eval\(\)"),
        (
            lambda: build(
                anchor_generator=OtherAnchors(
                    sizes=[[32], [64]], aspect_ratios=[1.0], strides=[8, 16]
                )
            ).eval(),
            "not those of OtherAnchors",
        ),
        (lambda: build(backbone=SquareBackbone()).eval(), "a square of 640 pixels"),
    ],
    ids=["no detector", "training", "anchors", "square"],
)
def test_what_cannot_be_exported_says_so(model, message):
    with pytest.raises(ValueError, match=message):
        ExportableDetector(model())
