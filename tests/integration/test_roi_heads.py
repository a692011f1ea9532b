"""Scores of proposals in the scores of a cascade."""

import torch
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import CascadeROIHeads, cascade_rcnn

from atss_d2 import ATSSHead
from atss_d2.integration import ProbabilisticCascadeROIHeads, roi_heads
from tests import rcnn_models as r


def cascade(heads=ProbabilisticCascadeROIHeads):
    """A cascade whose first stage is a class-agnostic ATSS."""
    node = r.with_atss(r.rcnn_config("cascade_rcnn", with_masks=True), focal=True)
    node.roi_heads._target_ = heads
    node.proposal_generator.head = L(ATSSHead)(
        input_shape=[ShapeSpec(channels=r.CHANNELS)] * 3,
        num_classes=1,
        num_anchors=3,
        conv_dims=[r.CHANNELS],
        norm="",
    )
    return r.build(node)


def passed_to_nms(model, module, monkeypatch):
    """Boxes and scores of a batch before NMS, and the proposals."""
    seen = []
    inference = module.fast_rcnn_inference
    monkeypatch.setattr(
        module, "fast_rcnn_inference", lambda *args: seen.append(args) or inference(*args)
    )
    model.eval()
    images = model.preprocess_image(r.batch())
    with torch.no_grad():
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        detections, _ = model.roi_heads(images, features, proposals)
    ((boxes, scores, *rest),) = seen
    return boxes, scores, rest, proposals, detections


def test_scores_are_those_of_classes_and_proposals(monkeypatch):
    boxes, scores, rest, proposals, found = passed_to_nms(cascade(), roi_heads, monkeypatch)
    stock = cascade(CascadeROIHeads)
    their_boxes, their_scores, their_rest, _, _ = passed_to_nms(stock, cascade_rcnn, monkeypatch)
    assert rest == their_rest
    for ours, theirs in zip(boxes, their_boxes, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs, proposal in zip(scores, their_scores, proposals, strict=True):
        expected = theirs * proposal.objectness_logits.sigmoid()[:, None]
        torch.testing.assert_close(ours.square(), expected)
        assert ours.max() <= 1
    assert len(found[0]) > 0
    assert found[0].has("pred_masks")


def test_training_is_that_of_the_base_class():
    losses = r.losses_of(cascade())
    torch.testing.assert_close(losses, r.losses_of(cascade(CascadeROIHeads)), rtol=0, atol=0)
    assert "loss_cls_stage2" in losses


def test_images_without_proposals():
    model = cascade().eval()
    model.proposal_generator.min_box_size = 1e4
    with torch.no_grad():
        found = model(r.batch())
    assert [len(x["instances"]) for x in found] == [0, 0, 0]
