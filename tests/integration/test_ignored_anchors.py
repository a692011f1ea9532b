"""Ignore regions and ignored anchors in Detectron2's RetinaNet, and in its FCOS, which has none."""

import pytest
import torch
from detectron2.structures import Boxes

from atss_d2 import CenterSamplingMatcher, IoUMatcher, use_atss, use_matcher
from atss_d2.modeling.matchers import IGNORED
from tests import detectron2_models as d2

BUILDERS = [d2.retinanet, d2.fcos]


@pytest.mark.parametrize("build", BUILDERS)
def test_ignore_regions(build):
    """Their anchors are ignored, whatever class they have; images may lack the field."""
    model = use_matcher(build(), CenterSamplingMatcher, ignore_ioa_thresh=0.5)
    plain = d2.instances([d2.BOXES[0]])
    with_region = d2.instances(d2.BOXES[:2], gt_ignore=[False, True])
    anchors = d2.anchors_of(model)
    labels, boxes = model.label_anchors(anchors, [with_region, plain])
    (expected, _), _ = model.label_anchors(anchors, [plain, plain])
    assert torch.equal(labels[1], expected)
    is_ignored = labels[0] == -1
    assert is_ignored.any()
    assert torch.equal(labels[0][~is_ignored], expected[~is_ignored])
    assert (expected[is_ignored] == d2.NUM_CLASSES).all()
    is_positive = (labels[0] >= 0) & (labels[0] < d2.NUM_CLASSES)
    assert torch.equal(boxes[0][is_positive].unique(dim=0), plain.gt_boxes.tensor)
    centers = Boxes.cat(anchors).get_centers()[is_ignored]
    assert (centers.amax(dim=0) < torch.tensor([96, 64])).all()
    # Without the threshold such anchors are background.
    use_matcher(model, CenterSamplingMatcher)
    labels, _ = model.label_anchors(anchors, [with_region])
    assert torch.equal(labels[0], expected)


def logit_gradients(model, images):
    """Gradients (R, K) of the class logits of one image."""
    kept = []
    hook = model.head.cls_score.register_forward_hook(
        lambda _, __, output: (output.retain_grad(), kept.append(output))[0]
    )
    sum(d2.losses_of(model, images).values()).backward()
    hook.remove()
    gradients = [
        x.grad.reshape(-1, d2.NUM_CLASSES, *x.shape[2:]).permute(2, 3, 0, 1).flatten(0, 2)
        for x in kept
    ]
    return torch.cat(gradients)


@pytest.mark.parametrize("build", BUILDERS)
def test_ignored_anchors_have_no_loss(build):
    images = [d2.image(d2.BOXES[:2], gt_ignore=[False, True])]
    model = use_atss(build(), ignore_ioa_thresh=0.5)
    (labels,), _ = model.label_anchors(d2.anchors_of(model), [images[0]["instances"]])
    gradients = logit_gradients(model, images)
    assert (labels == -1).any()
    assert torch.equal((gradients == 0).all(dim=1), labels == -1)

    # Nor does it matter what is predicted there: all other gradients stay.
    as_background = logit_gradients(use_atss(build()), images)
    torch.testing.assert_close(gradients[labels != -1], as_background[labels != -1])


@pytest.mark.parametrize("build", BUILDERS)
def test_everything_ignored_is_no_loss(build):
    losses = d2.losses_of(use_matcher(build(), d2.Recorder(IGNORED)))
    assert [loss.item() for loss in losses.values()] == [0.0] * len(losses)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fcos_ignores_in_half_precision_too(dtype):
    model = use_matcher(d2.fcos(), d2.Recorder(IGNORED))
    model.head.cls_score.register_forward_hook(lambda _, __, output: output.to(dtype))
    assert sum(d2.losses_of(model).values()) == 0


def test_fcos_ignores_positives_whose_center_is_outside():
    """Detectron2's centerness target of such an anchor is not a number."""
    box = [[9.0, 9, 11, 11]]  # between the centers (4, 4) and (12, 12)
    anchors = d2.anchors_of(d2.fcos())
    centers = Boxes.cat(anchors).get_centers()
    for build, expected in ((d2.fcos, -1), (lambda: d2.retinanet(1), 0)):
        model = use_atss(build(), min_positives=1)
        (labels,), _ = model.label_anchors(anchors, [d2.instances(box)])
        (idxs,) = (labels != d2.NUM_CLASSES).nonzero(as_tuple=True)
        assert labels[idxs].tolist() == [expected]
        assert not ((centers[idxs] > 9) & (centers[idxs] < 11)).all()
    assert all(loss.isfinite() for loss in d2.losses_of(model, [d2.image(box)]).values())
    model = use_matcher(d2.fcos(), IoUMatcher())
    assert all(loss.isfinite() for loss in d2.losses_of(model).values())
