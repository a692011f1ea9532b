"""Parts of different detectors together: they train, or one sentence says why not."""

import itertools

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.utils.events import EventStorage

from atss_d2.modeling import (
    CRITERION_REGISTRY,
    MATCHER_REGISTRY,
    ATSSCriterion,
    DDODCriterion,
    DDODMatcher,
    DistanceDistributions,
    GFLv2Head,
    IoUBranchCriterion,
    Predictions,
    SoftTargetCriterion,
    Targets,
    TaskAlignedCriterion,
    TaskAlignedMatcher,
    TOODHead,
    VFNetCriterion,
    VFNetHead,
)
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion.focal_loss import sigmoid_focal_loss
from tests.detector import BOXES, CHANNELS, ToyBackbone, build, image, toy_head

POINTS = PointDistances(anchor_scale=4)


def make_head(kind, **options):
    shapes = [ShapeSpec(channels=CHANNELS)] * 2
    return kind(input_shape=shapes, num_classes=3, conv_dims=[CHANNELS] * 2, **options)


def names_of_package(registry):
    """Without those that other tests register."""
    return [name for name, kind in registry if kind.__module__.startswith("atss_d2.")]


PAIRS = list(itertools.product(*map(names_of_package, (MATCHER_REGISTRY, CRITERION_REGISTRY))))


@pytest.mark.parametrize(("matcher", "criterion"), PAIRS)
def test_every_rule_trains_with_all_losses_or_is_refused(matcher, criterion):
    kind = CRITERION_REGISTRY.get(criterion)
    losses = kind(num_levels=2) if kind is DDODCriterion else kind()
    parts = {"head": toy_head(with_centerness=losses.uses_quality is not False)}
    if kind is VFNetCriterion:
        parts = {"head": make_head(VFNetHead), "box2box_transform": POINTS}
    parts |= {"matcher": MATCHER_REGISTRY.get(matcher)(), "criterion": losses}
    if matcher == DDODMatcher.__name__ and not losses.takes_box_labels:
        with pytest.raises(ValueError, match=r"selects those of boxes separately: use .* DDODCrit"):
            build(**parts)
        return
    if kind is TaskAlignedCriterion and matcher != TaskAlignedMatcher.__name__:
        with pytest.raises(ValueError, match=f"soft targets, which {matcher} does not give: set"):
            build(**parts)
        return
    with EventStorage():
        found = build(**parts)([image(BOXES), image([])])
    total = sum(found.values())
    total.backward()
    assert torch.isfinite(total)
    assert total > 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"criterion": VFNetCriterion(), "box2box_transform": POINTS},
            "VFNetCriterion has a loss of first boxes, which ATSSHead lacks: set head to VFNetHead",
        ),
        (
            {"head": VFNetHead, "box2box_transform": POINTS},
            "ATSSCriterion has no loss for the boxes that VFNetHead refines: set criterion to VFN",
        ),
        (
            {"head": VFNetHead, "criterion": SoftTargetCriterion()},
            "VFNetHead predicts distances: set box2box_transform to PointDistances",
        ),
        (
            {
                "head": TOODHead,
                "criterion": VFNetCriterion(),
                "box2box_transform": PointDistances(anchor_scale=4, clamp=False),
            },
            "VFNetCriterion has a loss of first boxes, which TOODHead lacks",
        ),
        (
            {"head": GFLv2Head, "criterion": SoftTargetCriterion()},
            "num_box_values=68 per anchor, but Box2BoxTransform takes 4",
        ),
        (
            {
                "head": GFLv2Head,
                "box2box_transform": DistanceDistributions(anchor_scale=4),
                "criterion": IoUBranchCriterion(),
            },
            "the head does not predict: set head.with_centerness=True, which ATSSHead has",
        ),
        ({"criterion": DDODCriterion(num_levels=3)}, "built for 3 levels, but the model has 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_the_model_is_built(parts, message):
    parts = {**parts, "head": make_head(parts["head"]) if "head" in parts else None}
    if parts["head"] is None:
        losses = parts["criterion"]
        parts["head"] = toy_head(with_centerness=losses.uses_quality is not False)
    with pytest.raises(ValueError, match=message):
        build(**parts)


def test_distributions_have_one_anchor_per_location():
    coder = DistanceDistributions()
    head = toy_head(num_anchors=3, num_box_values=coder.num_values)
    with pytest.raises(ValueError, match="DistanceDistributions regresses from a point and needs"):
        build(num_anchors=3, head=head, box2box_transform=coder)


def test_the_head_takes_the_channels_of_the_backbone():
    backbone = ToyBackbone()
    backbone._out_feature_channels["p4"] = 2 * CHANNELS
    with pytest.raises(ValueError, match=r"features of 64 channels, but those .* have \[64, 128\]"):
        build(backbone=backbone)


def test_coders_find_the_strides_of_the_anchors(caplog):
    """Their sides are 4 strides here, and 8 by default."""
    head = toy_head(with_centerness=False, num_box_values=68)
    gfl = {"head": head, "criterion": SoftTargetCriterion()}
    key = r"\(MODEL.ATSS.DISTANCE_DISTRIBUTIONS.ANCHOR_SCALE in yaml\)"
    sentence = rf"anchor_scale=8, .* it is \[4.0, 4.0\]: set box2box_transform.anchor_scale=4 {key}"
    with pytest.raises(ValueError, match=sentence):
        build(**gfl, box2box_transform=DistanceDistributions())
    build(**gfl, box2box_transform=DistanceDistributions(anchor_scale=4))
    vfnet = {"head": make_head(VFNetHead), "criterion": VFNetCriterion()}
    with pytest.raises(ValueError, match="set box2box_transform.anchor_scale=4"):
        build(**vfnet, box2box_transform=PointDistances())
    anchors = DefaultAnchorGenerator(sizes=[[32], [80]], aspect_ratios=[1.0], strides=[8, 16])
    with pytest.raises(ValueError, match=r"\[4.0, 5.0\]: set anchor_generator.sizes to the same"):
        build(**vfnet, box2box_transform=POINTS, anchor_generator=anchors)
    assert not caplog.records
    build(box2box_transform=PointDistances())  # the head may learn distances in any unit
    assert "PointDistances has anchor_scale=8" in caplog.text


# --------------------------------------------------------------- two sets of samples


def made_up(box_labels):
    """Six anchors of one level, one image, two classes; four positives of the classification."""
    generator = torch.Generator().manual_seed(0)
    anchors = torch.tensor([[8.0 * i, 0, 8.0 * i + 32, 32] for i in range(6)], dtype=torch.float64)
    logits, values, quality = (
        torch.rand(1, 6, *shape, generator=generator, dtype=torch.float64)
        for shape in ((2,), (4,), ())
    )
    targets = Targets(
        anchors, torch.tensor([[0, 1, 0, 1, 2, 2]]), anchors[None] + 2, box_labels=box_labels
    )
    return Predictions([logits], [values], [quality]), targets


@pytest.mark.parametrize(
    "criterion",
    [
        ATSSCriterion(),
        ATSSCriterion(floor_per_image=True),
        IoUBranchCriterion(),
        IoUBranchCriterion(floor_by_images=True),
    ],
    ids=["centerness", "floor per image", "iou", "floor by images"],
)
def test_each_loss_is_divided_by_its_own_positives(criterion):
    criterion.bind(box2box_transform=PointDistances(anchor_scale=4), num_classes=2)
    box_labels = torch.tensor([[0, 2, 2, 2, 2, 2]])
    predictions, targets = made_up(box_labels)
    found = criterion(predictions, targets)
    focal = sigmoid_focal_loss(predictions.logits[0][0], targets.labels[0], alpha=0.25, gamma=2.0)
    torch.testing.assert_close(found["loss_cls"], focal / 4)
    # All others are those of the one sample of boxes.
    alone = criterion(predictions, targets._replace(labels=box_labels, box_labels=None))
    for name in alone.keys() - {"loss_cls"}:
        torch.testing.assert_close(found[name], alone[name])


@pytest.mark.parametrize("kind", [SoftTargetCriterion, TaskAlignedCriterion])
def test_losses_of_one_set_of_samples_refuse_a_second_one(kind):
    criterion = kind()
    criterion.bind(box2box_transform=PointDistances(anchor_scale=4), num_classes=2)
    predictions, targets = made_up(torch.tensor([[0, 2, 2, 2, 2, 2]]))
    soft = torch.zeros(1, 6)  # the scores would learn the quality of a box that is not a sample
    with pytest.raises(ValueError, match="trains classes and boxes with the same samples"):
        criterion(predictions._replace(quality=None), targets._replace(soft=soft))
