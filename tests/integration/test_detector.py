"""``use_atss`` and ``use_matcher`` on built models: labels, losses, and all else as before."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torch import nn

from atss_d2 import (
    ATSSMatcher,
    CenterSamplingMatcher,
    IoUMatcher,
    ScaleRangeMatcher,
    TopKMatcher,
    get_config,
    use_atss,
    use_matcher,
)
from tests import detectron2_models as d2
from tests.detector import CHANNELS, ToyBackbone

BUILDERS = [d2.retinanet, d2.fcos]
MATCHERS = [ATSSMatcher, IoUMatcher, ScaleRangeMatcher, CenterSamplingMatcher, TopKMatcher]


# ------------------------------------------------------------------ labels: those of our class


@pytest.fixture(scope="module")
def zoo_pairs():
    """Detectron2's model-zoo models with ATSS, and our class on anchors alike."""
    pairs = {}
    for name in ("retinanet", "fcos"):
        ours = get_config("coco/atss_R_50_FPN_1x").model
        theirs = d2.zoo_config(name).model
        if name == "retinanet":
            ours.anchor_generator = theirs.anchor_generator
            ours.head.num_anchors = ours.matcher.num_anchors = 9
        # Only anchors and labels are asked for.
        theirs.backbone = L(ToyBackbone)(num_levels=5)
        ours.backbone = theirs.backbone
        ours.head.input_shape = [ShapeSpec(channels=CHANNELS)] * 5
        pairs[name] = (use_atss(instantiate(theirs)), instantiate(ours))
    return pairs


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
@pytest.mark.parametrize("num_boxes", [(0, 0), (1, 0, 7), (30,)])
def test_labels_on_the_model_zoo_are_those_of_our_class(zoo_pairs, name, num_boxes):
    theirs, ours = zoo_pairs[name]
    generator = torch.Generator().manual_seed(sum(num_boxes))
    size = (256, 384)
    batch = [
        d2.instances(d2.random_boxes(n, generator, size, least=8).tolist(), size=size)
        for n in num_boxes
    ]
    theirs_of_d2, theirs_of_ours = d2.anchors_of(theirs, size), d2.anchors_of(ours, size)
    labels, boxes = theirs.label_anchors(theirs_of_d2, batch)
    targets = ours.label_anchors(theirs_of_ours, batch)
    expected_labels, expected_boxes = targets.labels, targets.boxes
    assert torch.equal(torch.stack(labels), expected_labels)
    is_positive = (expected_labels >= 0) & (expected_labels < 80)
    assert is_positive.any() == any(num_boxes)
    assert torch.equal(torch.stack(boxes)[is_positive], expected_boxes[is_positive])


# ---------------------------------------------------- the same rule gives Detectron2's own losses


def test_retinanet_with_its_own_rule_is_retinanet():
    stock, changed = d2.retinanet(), use_matcher(d2.retinanet(), IoUMatcher())
    torch.testing.assert_close(d2.losses_of(changed), d2.losses_of(stock), rtol=0, atol=0)
    gradients, expected = d2.gradients_of(changed), d2.gradients_of(stock)
    torch.testing.assert_close(gradients, expected)


def test_fcos_with_its_own_rule_is_fcos():
    """Detectron2's edges: inside means > 0 px."""
    stock = d2.fcos()
    changed = use_matcher(d2.fcos(), CenterSamplingMatcher, center_epsilon=0.0)
    torch.testing.assert_close(d2.losses_of(changed), d2.losses_of(stock), rtol=0, atol=0)
    torch.testing.assert_close(d2.gradients_of(changed), d2.gradients_of(stock))


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("build", BUILDERS)
def test_every_rule_trains(build, matcher):
    model = use_matcher(build(), matcher)

    def summed_loss():  # Detectron2 divides by a moving average, which starts far too high
        return sum(d2.losses_of(model).values()) * model.loss_normalizer

    before = summed_loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    for _ in range(8):
        gradients = d2.gradients_of(model)
        assert all(g.isfinite().all() for g in gradients.values())
        optimizer.step()
    assert summed_loss() < before


# ------------------------------------------------------------------- what the matcher is given


@pytest.mark.parametrize("build", BUILDERS)
def test_one_call_for_the_whole_batch(build):
    recorder = d2.Recorder()
    d2.losses_of(use_matcher(build(), recorder))
    (scene,) = recorder.scenes
    assert len(scene.anchors) == 2
    assert scene.boxes.tolist() == [*d2.BOXES, d2.BOXES[0]]
    assert scene.image_idxs.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("model", "anchor_scale", "strides"),
    [
        (d2.fcos, None, 8),
        (d2.fcos, 5, 5),
        (lambda: d2.retinanet(1), 6, 6),
        (lambda: d2.retinanet(1), None, 4),  # the model's own
    ],
)
def test_sides_of_the_anchors_that_the_matcher_sees(model, anchor_scale, strides):
    recorder = d2.Recorder()
    model = use_matcher(model(), recorder, anchor_scale=anchor_scale)
    d2.losses_of(model)
    own = d2.anchors_of(model)
    for seen, anchors, stride in zip(recorder.scenes[0].anchors, own, d2.STRIDES, strict=True):
        assert torch.equal(seen[:, 2:] - seen[:, :2], torch.full((len(seen), 2), strides * stride))
        assert torch.equal(Boxes(seen).get_centers(), anchors.get_centers())


def test_what_the_model_determines():
    retinanet, fcos = d2.retinanet(9), d2.fcos()
    assert use_atss(retinanet, min_positives=2).label_anchors.matcher.num_anchors == 9
    assert retinanet.label_anchors.matcher.min_positives == 2
    assert retinanet.label_anchors.matcher.topk == 9
    assert use_atss(fcos, topk=5).label_anchors.matcher.num_anchors == 1
    assert fcos.label_anchors.matcher.topk == 5
    matcher = use_matcher(fcos, CenterSamplingMatcher, radius=2.5).label_anchors.matcher
    assert (matcher.strides, matcher.radius) == (d2.STRIDES, 2.5)
    assert use_matcher(fcos, ScaleRangeMatcher).label_anchors.matcher.strides == d2.STRIDES


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("build", BUILDERS)
def test_a_class_that_the_model_does_not_have(build):
    model = use_atss(build())
    images = d2.batch()
    images[0]["instances"].gt_classes[0] = model.num_classes
    with pytest.raises(ValueError, match=f"got {model.num_classes}: the model has num_classes="):
        d2.losses_of(model, images)


class NotAMatcher:
    pass


@pytest.mark.parametrize(
    ("model", "matcher", "options", "error", "message"),
    [
        (
            nn.Linear(1, 1),
            ATSSMatcher(),
            {},
            TypeError,
            r"RetinaNet, FCOS and .* got Linear, .* no",
        ),
        (nn.Linear(1, 1), None, {}, TypeError, "got Linear, which has no label_anchors"),
        (d2.fcos(), NotAMatcher(), {}, TypeError, "must be a DenseMatcher, got NotAMatcher"),
        (d2.fcos(), NotAMatcher, {}, TypeError, "got the class NotAMatcher"),
        (d2.fcos(), ATSSMatcher(), {"topk": 3}, TypeError, "^topk: only the class of a matcher"),
        (d2.fcos(), None, {"topk": 3}, TypeError, "^topk: only the class of a matcher"),
        (d2.fcos(), ATSSMatcher, {"topk": 0}, ValueError, "topk must be >= 1, got 0"),
        (d2.fcos(), ATSSMatcher, {"anchor_scale": 0}, ValueError, "scale must be > 0, got 0"),
        (d2.retinanet(9), ATSSMatcher(num_anchors=1), {}, ValueError, "1, .* has num_anchors=9"),
        (d2.retinanet(9), ATSSMatcher, {"num_anchors": 3}, ValueError, "built for num_anchors=3"),
        (
            d2.retinanet(9),
            ATSSMatcher,
            {"anchor_scale": 8},
            ValueError,
            r"anchor_scale=8 needs one anchor per location, .* gives \[9, 9\]",
        ),
        (
            d2.fcos(),
            ScaleRangeMatcher(strides=(8, 16, 32)),
            {},
            ValueError,
            r"matcher was built for strides=\(8, 16, 32\)",
        ),
    ],
)
def test_errors(model, matcher, options, error, message):
    attributes = dict(vars(model))
    with pytest.raises(error, match=message):
        use_matcher(model, matcher, **options)
    assert vars(model) == attributes


def test_our_own_class_has_its_matcher(zoo_pairs):
    _, model = zoo_pairs["fcos"]
    with pytest.raises(TypeError, match=r"ATSS has a matcher of its own: set model\.matcher"):
        use_atss(model)
