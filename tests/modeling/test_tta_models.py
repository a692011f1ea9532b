"""Test-time augmentation: real detectors, and how it is built."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from atss_d2 import ATSS, DenseDetectorWithTTA
from tests import detector
from tests import detectron2_models as d2
from tests.spots import Spots, detect, picture, write_picture

# --------------------------------------------------------------------------- models


def small_anchors():
    return DefaultAnchorGenerator(
        sizes=[[12], [24]], aspect_ratios=[1.0], strides=[8, 16], offset=0.5
    )


@pytest.fixture(
    params=[detector.build, lambda: d2.retinanet(1, anchor_generator=small_anchors()), d2.fcos],
    ids=["ATSS", "RetinaNet", "FCOS"],
)
def real_model(request):
    """A detector with random weights that finds a lot."""
    model = request.param()
    if not isinstance(model, ATSS):
        # RetinaNet's NMS comes before the borders of the image cut its boxes, the merge after: only
        # small boxes that hardly move let both see the same overlaps.
        nn.init.normal_(model.head.bbox_pred.weight, std=0.01)
        nn.init.zeros_(model.head.bbox_pred.bias)
        nn.init.zeros_(model.head.cls_score.bias)
    return model.eval()


def test_one_pass_is_the_plain_model(real_model, tmp_path):
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    file_name = write_picture(tmp_path / "picture.png", image)
    dataset_dict = {"file_name": file_name, "image": image, "height": 96, "width": 150}
    with torch.no_grad():
        plain = real_model([dataset_dict])[0]["instances"]
    assert len(plain) > 20
    model = DenseDetectorWithTTA(
        real_model, min_sizes=[64], flip=False, merge="nms", input_format="BGR"
    )
    found = model([dataset_dict])[0]["instances"]
    assert found.image_size == plain.image_size
    torch.testing.assert_close(found.pred_boxes.tensor, plain.pred_boxes.tensor)
    torch.testing.assert_close(found.scores, plain.scores)
    torch.testing.assert_close(found.pred_classes, plain.pred_classes)


@pytest.mark.parametrize("merge", ["nms", "vote", "soft_vote"])
def test_real_models_in_all_ways(real_model, merge):
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    model = DenseDetectorWithTTA(real_model, min_sizes=[48, 64], merge=merge, input_format="BGR")
    boxes, scores, classes = detect(model, image, height=100, width=150)
    assert 50 < len(boxes) <= 400
    assert not scores.requires_grad
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert set(classes.tolist()) <= {0, 1, 2}
    assert boxes.amin() >= 0
    assert boxes[:, 0::2].amax() <= 150
    assert boxes[:, 1::2].amax() <= 100


def test_training_is_refused():
    real_model = detector.build().eval()
    model = DenseDetectorWithTTA(real_model, min_sizes=[64], input_format="BGR")
    assert not model.training  # as the model in it
    inputs = [{"image": picture()}]
    with pytest.raises(RuntimeError, match="cannot be trained: call eval()"):
        model.train()(inputs)
    model.eval()(inputs)
    real_model.train()
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model(inputs)
    assert DenseDetectorWithTTA(real_model, input_format="BGR").training


def test_a_model_of_several_processes_is_unwrapped(monkeypatch):
    spots = Spots()
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = spots
    assert DenseDetectorWithTTA(wrapped).model is spots


# --------------------------------------------------------------------------- construction


def test_from_detectron2s_config():
    cfg = get_cfg()
    cfg.TEST.AUG.MIN_SIZES = (30, 60)
    cfg.TEST.AUG.MAX_SIZE = 75
    cfg.TEST.AUG.FLIP = False
    cfg.TEST.DETECTIONS_PER_IMAGE = 2
    cfg.INPUT.FORMAT = "RGB"
    spots = Spots()
    model = DenseDetectorWithTTA(cfg, spots, merge="nms", iou_thresh=0.3)
    boxes, _, _ = detect(model, picture((4, 6, 24, 26), (30, 10, 50, 38), (0, 0, 60, 40)))
    assert spots.shapes == [[(30, 45)], [(50, 75)]]
    assert len(boxes) == 2
    assert (model.input_format, model.merge, model.iou_thresh) == ("RGB", "nms", 0.3)


def test_defaults_are_detectron2s():
    model, cfg = DenseDetectorWithTTA(Spots()), get_cfg()
    expected = DenseDetectorWithTTA(cfg, Spots())
    for a, b in zip(model.resizes, expected.resizes, strict=True):
        assert vars(a) == vars(b)
    assert model.flip == expected.flip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_sizes": []}, "min_sizes is empty"),
        ({"min_sizes": [0, 5]}, "min_sizes must be >= 1 pixel, got 0"),
        ({"max_size": -1}, "max_size must be >= 1 pixel, got -1"),
        ({"min_sizes": [1, 2], "max_size": [3]}, "2 scales, but max_size has 1 entries"),
        ({"min_sizes": [1], "size_ranges": []}, "1 scales, but size_ranges has 0 entries"),
        ({"min_sizes": [1], "size_ranges": [(5, 5)]}, "low < high, got \\(5, 5\\)"),
        ({"min_sizes": [1], "size_ranges": [(5,)]}, "must be \\(low, high\\)"),
        ({"merge": "vot"}, 'merge must be one of nms, vote, soft_vote, got "vot"'),
        ({"iou_thresh": 0}, "iou_thresh must be in \\(0, 1\\], got 0"),
        ({"iou_thresh": 66}, "iou_thresh must be in \\(0, 1\\], got 66"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"max_detections_per_image": 0}, "max_detections_per_image must be >= 1, got 0"),
    ],
)
def test_impossible_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DenseDetectorWithTTA(Spots(), **options)


def test_what_a_model_does_not_say_must_be_given():
    model = nn.Identity().eval()
    with pytest.raises(ValueError, match="Identity does not say the channel order.*input_format"):
        DenseDetectorWithTTA(model)
    with pytest.raises(ValueError, match="Identity has no test_nms_thresh: give iou_thresh"):
        DenseDetectorWithTTA(model, input_format="BGR", merge="nms")
