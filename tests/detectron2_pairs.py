"""Detectron2's RetinaNet and FCOS, and our class with the same settings and weights."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from atss_d2 import ATSS, ATSSHead, CenterSamplingMatcher, IoUMatcher
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.nouns import Targets
from tests import detectron2_models as d2
from tests.toy import CHANNELS

# Nothing that detections may differ in: all scores, all boxes.
EVERYTHING = {"test_score_thresh": 0.0, "max_detections_per_image": 10_000}


def our_head(num_anchors=1, **switches):
    return ATSSHead(
        input_shape=[ShapeSpec(channels=CHANNELS)] * len(d2.STRIDES),
        num_classes=d2.NUM_CLASSES,
        num_anchors=num_anchors,
        conv_dims=[CHANNELS, CHANNELS],
        with_scales=False,
        **switches,
    )


def our_model(theirs, **parts):
    """Our class with the settings and the weights of Detectron2's model."""
    names = ("test_score_thresh", "test_topk_candidates", "test_nms_thresh")
    ours = ATSS(
        backbone=d2.backbone(),
        anchor_generator=theirs.anchor_generator,
        num_classes=d2.NUM_CLASSES,
        head_in_features=["p3", "p4"],
        box_reg_loss_weight=1.0,
        max_detections_per_image=theirs.max_detections_per_image,
        **{name: getattr(theirs, name) for name in names},
        **d2.PIXELS,
        **parts,
    )
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours


def retinanets(num_anchors=9, norm="", **options):
    """Detectron2's RetinaNet and ours."""
    theirs = d2.retinanet(num_anchors, norm, **options)
    ours = our_model(
        theirs,
        head=our_head(num_anchors, norm=norm, with_centerness=False),
        box2box_transform=theirs.box2box_transform,
        matcher=IoUMatcher(),
        box_reg_loss_type=theirs.box_reg_loss_type,
        smooth_l1_beta=theirs.smooth_l1_beta,
    )
    return theirs, ours


def fcoses(norm="GN", **options):
    """Detectron2's FCOS and ours."""
    theirs = d2.fcos(norm, **options)
    ours = our_model(
        theirs,
        head=our_head(norm=norm),
        box2box_transform=PointDistances(anchor_scale=1.0),
        matcher=CenterSamplingMatcher(strides=d2.STRIDES, center_epsilon=0.0),
        centerness_weighted_box_loss=False,
    )
    return theirs, ours


RETINANETS = [
    pytest.param(lambda **kw: retinanets(1, **kw), id="RetinaNet A=1"),
    pytest.param(lambda **kw: retinanets(9, **kw), id="RetinaNet A=9"),
    pytest.param(lambda **kw: retinanets(1, "GN", **kw), id="RetinaNet A=1 GN"),
    pytest.param(lambda **kw: retinanets(9, "GN", **kw), id="RetinaNet A=9 GN"),
]
FCOSES = [
    pytest.param(fcoses, id="FCOS"),
    pytest.param(lambda **kw: fcoses("", **kw), id="FCOS without GN"),
]
PAIRS = RETINANETS + FCOSES


def random_batch(seed, num_boxes=(5, 0, 2)):
    generator = torch.Generator().manual_seed(seed)
    return [
        d2.image(d2.random_boxes(num, generator).tolist(), seed=i)
        for i, num in enumerate(num_boxes)
    ]


def labels_of(model, images):
    """Labels (N, R) and matched boxes (N, R, 4)."""
    anchors = d2.anchors_of(model)
    targets = model.label_anchors(anchors, [x["instances"] for x in images])
    labels, boxes = targets[1:3] if isinstance(targets, Targets) else targets
    return torch.stack(list(labels)), torch.stack(list(boxes))


def num_positives(model, images):
    labels, _ = labels_of(model, images)
    return max(int(((labels >= 0) & (labels < d2.NUM_CLASSES)).sum()), 1)


def check_detections(theirs, ours, images, least=5):
    for a, b in zip(d2.detections_of(theirs, images), d2.detections_of(ours, images), strict=True):
        assert len(a) >= least
        torch.testing.assert_close(b.scores, a.scores)
        torch.testing.assert_close(b.pred_boxes.tensor, a.pred_boxes.tensor)
        assert torch.equal(b.pred_classes, a.pred_classes)
