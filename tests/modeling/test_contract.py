"""What parts of a detector promise each other, and the errors of those that do not fit.

Parts of a user's own that fit are in tests/extensions/.
"""

import concurrent.futures
import copy
import random

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import nn

import atss_d2
from atss_d2 import use_matcher
from atss_d2.modeling import (
    ATSS,
    ATSSHead,
    ATSSMatcher,
    CenterSamplingMatcher,
    IoUMatcher,
    ScaleRangeMatcher,
    TopKMatcher,
)
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion import ATSSCriterion
from atss_d2.modeling.nouns import Assignment
from tests import detectron2_models as d2
from tests.detector import BOXES, CHANNELS, build, image, random_boxes
from tests.extensions.dfl import DistanceDistributions
from tests.extensions.soft import TaskAlignedMatcher

# --------------------------------------------------------------------- shared by threads

MATCHERS = {
    "atss": ATSSMatcher(ignore_ioa_thresh=0.5),
    "iou": IoUMatcher(),
    "scale range": ScaleRangeMatcher(strides=(8, 16)),
    "center sampling": CenterSamplingMatcher(strides=(8, 16)),
    "topk": TopKMatcher(),
}


def scene_of(seed, generator):
    """Anchors on the grid of an image of another size, boxes and ignore regions."""
    torch.manual_seed(seed)
    height, width = (int(x) for x in torch.randint(4, 12, (2,)))
    sizes = [(height, width), ((height + 1) // 2, (width + 1) // 2)]
    anchors = generator([torch.zeros(1, 1, *size) for size in sizes])
    counts = torch.randint(0, 6, (2,)).tolist()
    boxes = [Boxes(random_boxes(count)) for count in counts]
    return anchors, boxes, [torch.rand(count) < 0.3 for count in counts], sizes


@pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS)
def test_two_threads_share_a_matcher(matcher):
    """A rule keeps nothing of a call."""
    generator = build().anchor_generator
    scenes = [scene_of(seed, generator) for seed in range(20)]
    expected = [matcher(*scene) for scene in scenes]
    state = copy.deepcopy(vars(matcher))

    def label(thread):
        order = random.Random(thread).choices(range(len(scenes)), k=80)
        return [i for i in order if not torch.equal(matcher(*scenes[i]), expected[i])]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        assert list(pool.map(label, range(2))) == [[], []]
    assert vars(matcher) == state


# --------------------------------------------------------------------- channels and outputs


class Maps(nn.Module):
    """A head that says nothing of its channels."""

    def __init__(self, *widths):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(CHANNELS, width, 1) for width in widths])

    def forward(self, features):
        return [[conv(feature) for feature in features] for conv in self.convs]


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((3, 68), r"box regression of 68 channels, but 1 anchors .* 4 values each need 4"),
        ((5, 4, 1), r"class logits of 5 channels, but 1 anchors .* 3 values each need 3"),
        ((3, 4, 2), r"quality of 2 channels, but 1 anchors .* 1 values each need 1"),
        (
            (3, 4, 1, 4, 4),
            "the head gives 5 outputs, but a detector takes 2 to 4: class",
        ),
        ((3,), "the head gives 1 outputs, but a detector takes 2 to 4"),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_maps_that_do_not_fit_are_refused_by_the_first_forward(widths, message, training):
    model = build()
    model.head = Maps(*widths)
    with pytest.raises(ValueError, match=message):
        model.train(training)([image(BOXES)])


def test_maps_of_other_levels_are_refused():
    model = build()
    model.head = nn.Module()
    model.head.forward = lambda features: [features[:1], features[:1]]
    with pytest.raises(ValueError, match="class logits for 1 levels, but there are 2 levels of"):
        model([image(BOXES)])


def head(**options):
    options = {"num_classes": 3, "conv_dims": [CHANNELS], **options}
    return ATSSHead(input_shape=[ShapeSpec(channels=CHANNELS)] * 2, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"head": head(num_box_values=68)},
            "built for num_box_values=68 per anchor, but Box2BoxTransform takes 4",
        ),
        (
            {"box2box_transform": DistanceDistributions()},
            "built for num_box_values=4 per anchor, but DistanceDistributions takes 68",
        ),
        ({"head": head(num_classes=5)}, "num_classes=3, but the head was built for 5 classes"),
        (
            {
                "head": head(num_box_values=68),
                "box2box_transform": DistanceDistributions(),
                "box_reg_loss_type": "smooth_l1",
            },
            "smooth_l1 compares 4 values of a box, but DistanceDistributions takes 68",
        ),
    ],
    ids=["head", "coder", "classes", "loss"],
)
def test_parts_that_say_their_numbers_are_refused_when_built(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# ------------------------------------------------------------------------------ use_matcher


class HalfSure(ATSSMatcher):
    """Soft targets without a look at predictions."""

    def match(self, scene):
        matched = super().match(scene).matched_idxs
        return Assignment(matched, 0.5 * (matched >= 0))


def test_use_matcher_refuses_rules_that_need_more_than_detectron2_gives():
    for model in (d2.retinanet(), d2.fcos()):
        for matcher in (TaskAlignedMatcher, TaskAlignedMatcher()):
            with pytest.raises(TypeError, match="TaskAlignedMatcher selects by predictions"):
                use_matcher(model, matcher)
        use_matcher(model, HalfSure)
        with pytest.raises(TypeError, match="HalfSure gives soft targets"):
            d2.gradients_of(model, [d2.image(d2.BOXES, 0)])


def test_soft_targets_take_the_place_of_centerness():
    """The box loss of equal weights is that of an unweighted one."""
    batch = [image(BOXES)]
    soft = build(matcher=HalfSure())(batch)
    unweighted = build(centerness_weighted_box_loss=False)(batch)
    torch.testing.assert_close(soft["loss_box_reg"], unweighted["loss_box_reg"])
    torch.testing.assert_close(soft["loss_cls"], unweighted["loss_cls"])
    assert not torch.isclose(soft["loss_centerness"], unweighted["loss_centerness"])


def test_a_rule_that_needs_predictions_is_not_called_without():
    with pytest.raises(ValueError, match="TaskAlignedMatcher selects by predictions: give scene"):
        TaskAlignedMatcher()([torch.zeros(1, 4)], [torch.zeros(1, 4)])


# ------------------------------------------------------------- subclasses and other criteria


class OnlyTheFirst(ATSS):
    """Makes the boxes of all images but the first background, and doubles the losses."""

    def label_anchors(self, *args):
        targets = super().label_anchors(*args)
        targets.labels[1:] = self.num_classes
        return targets

    def losses(self, predictions, targets):
        losses = super().losses(predictions, targets)
        return {key: 2 * loss for key, loss in losses.items()}


def test_what_a_subclass_overrides_is_heard():
    model, batch = build(), [image(BOXES), image(BOXES)]
    other = copy.deepcopy(model)
    other.__class__ = OnlyTheFirst
    losses, expected = other(batch), model([image(BOXES), image()])
    for key in losses:
        torch.testing.assert_close(losses[key], 2 * expected[key])


def test_losses_of_a_subclass_of_the_criterion_are_heard():
    class More(ATSSCriterion):
        def compute(self, predictions, targets):
            losses = super().compute(predictions, targets)
            return {**losses, "loss_size": predictions.regression[0].square().mean()}

    model = build(criterion=More(box_reg_loss_weight=4.0))
    losses, plain = model([image(BOXES)]), build()([image(BOXES)])
    assert list(losses) == [*plain, "loss_size"]
    torch.testing.assert_close(losses["loss_box_reg"], 2 * plain["loss_box_reg"])


def test_arguments_beside_a_criterion_would_have_no_effect():
    message = (
        "focal_loss_alpha, floor_per_image would have no effect beside criterion=ATSSCriterion"
    )
    with pytest.raises(ValueError, match=message):
        build(criterion=ATSSCriterion(), focal_loss_alpha=0.5, floor_per_image=True)
    build(criterion=ATSSCriterion(), focal_loss_alpha=0.25)  # the default


def test_parts_may_be_set_after_a_model_was_built():
    """As the matcher of a trained model, so its criterion and its coder."""
    coder = PointDistances(anchor_scale=4)
    expected = build(box_reg_loss_type="smooth_l1", box2box_transform=coder)([image(BOXES)])
    model = build()
    model([image(BOXES)])
    model.criterion = ATSSCriterion(box_reg_loss_type="smooth_l1")
    model.box2box_transform = coder
    torch.testing.assert_close(model([image(BOXES)]), expected)


def test_models_share_a_criterion():
    """Each binds it to its own coder and classes before it computes losses."""
    criterion = ATSSCriterion()
    first, second = build(criterion=criterion), build(num_classes=7, criterion=criterion)
    for model, num_classes in ((first, 3), (second, 7), (first, 3)):
        expected = build(num_classes=num_classes)([image(BOXES)])
        torch.testing.assert_close(model([image(BOXES)]), expected)


def test_counters_of_a_criterion_are_saved():
    class Counting(ATSSCriterion):
        def __init__(self):
            super().__init__()
            self.register_buffer("num_positives", torch.zeros(()))

        def compute(self, predictions, targets):
            self.num_positives += (targets.labels < self.num_classes).sum()
            return super().compute(predictions, targets)

    model = build(criterion=Counting())
    model([image(BOXES)])
    assert model.state_dict()["criterion.num_positives"] > 5


# ------------------------------------------------------------------------------------ bind


def test_a_rule_of_the_demo_config_learns_its_strides():
    cfg = atss_d2.get_config("demo/atss_mobilenetv2_trees")
    cfg.model.matcher = L(ScaleRangeMatcher)()
    model = instantiate(cfg.model)
    assert model.matcher.strides == (8, 16, 32, 64)
    with EventStorage():
        losses = model([image([[10.0, 10, 80, 90]], [0], size=(128, 128))])
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] > 0


@pytest.mark.parametrize("rule", [ScaleRangeMatcher, CenterSamplingMatcher])
def test_a_matcher_belongs_to_models_of_the_same_strides(rule):
    matcher = rule()
    build(matcher=matcher)
    build(matcher=matcher, seed=1)([image(BOXES)])
    message = r"built for strides=\(8, 16\), but the model has strides=\(8, 16, 32\): leave strides"
    with pytest.raises(ValueError, match=message):
        build(3, matcher=matcher)
    model = build(3)
    model.matcher = matcher
    with pytest.raises(ValueError, match=message):
        model([image(BOXES)])


def test_a_matcher_belongs_to_models_of_the_same_number_of_anchors():
    matcher = ATSSMatcher()
    build(matcher=matcher)
    with pytest.raises(
        ValueError, match="built for num_anchors=1, but the model has num_anchors=9"
    ):
        build(num_anchors=9, matcher=matcher)
