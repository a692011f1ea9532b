"""TOOD: numbers of mmdetection, and losses before and after the warm-up."""

import warnings

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch._subclasses import FakeTensorMode

from atss_d2.modeling import (
    ATSSMatcher,
    Targets,
    TaskAlignedCriterion,
    TaskAlignedMatcher,
    TOODHead,
    anchor_generator,
    atss,
)
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.labels import look_up
from atss_d2.modeling.matchers import grid
from atss_d2.modeling.postprocess import postprocess
from atss_d2.modeling.predictions import decode_predictions, predictions_from_maps
from atss_d2.modeling.scene import scene_of_instances
from tests import quality_scene
from tests.detector import BOXES, CHANNELS, image, toy_head
from tests.quality_scene import (
    NUM_CLASSES,
    assert_published_gradients,
    grid_sizes,
    instances,
    load_published,
    of_levels,
    tensor,
)
from tests.reference import (
    binary_cross_entropy,
    centerness,
    focal_loss,
    giou,
    sigmoid,
)
from tests.tood import tood

STRIDES = (8, 16, 32, 64, 128)
CODER = PointDistances(clamp=False)
PHASES = {"initial": 0, "tal": 10}


@pytest.fixture(scope="module")
def head():
    head = TOODHead(
        input_shape=[ShapeSpec(channels=32)] * 5,
        num_classes=NUM_CLASSES,
        conv_dims=[32] * 6,
        anchor_offset=0.0,
    )
    return load_published(head, "tood")


@pytest.fixture(scope="module")
def anchors():
    return quality_scene.anchors()


def as_predictions(maps):
    return predictions_from_maps(
        maps, num_anchors=[1] * 5, num_classes=NUM_CLASSES, num_box_values=4
    )


def centers_of(level):
    """(2, H, W) of the anchors, in strides from the border."""
    height, width = level.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y)).float()


def published_maps():
    """Their probabilities as logits, their boxes as distances."""
    distances = []
    for boxes in of_levels("tood.reg"):
        centers = centers_of(boxes)
        distances.append(torch.cat((centers - boxes[:, :2], boxes[:, 2:] - centers), dim=1))
    return [[p.double().logit().float() for p in of_levels("tood.cls")], distances]


def matcher():
    return TaskAlignedMatcher(warm_up=ATSSMatcher(num_anchors=1), warm_up_iterations=4)


def assigned(anchors, predictions, iteration, with_boxes=(True, True)):
    scene = scene_of_instances(
        anchors,
        instances(with_boxes),
        grid_sizes(),
        num_classes=NUM_CLASSES,
        predictions=decode_predictions(predictions, anchors, CODER),
        iteration=iteration,
    )
    assignment = matcher().assign(scene)
    return assignment, look_up(assignment, scene, num_classes=NUM_CLASSES)


def criterion_of(num_classes=NUM_CLASSES, **arguments):
    criterion = TaskAlignedCriterion(**arguments)
    criterion.bind(box2box_transform=CODER, num_classes=num_classes)
    return criterion


def assert_losses(losses, case):
    assert list(losses) == ["loss_cls", "loss_box_reg"]
    for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box_reg", "loss_bbox")):
        expected = tensor(f"{case}.{theirs}")
        torch.testing.assert_close(losses[ours].double(), expected, rtol=1e-5, atol=1e-7)


# Numbers of mmdetection


@torch.no_grad()
def test_maps_of_mmdetection(head):
    logits, distances = head(of_levels("feat"))
    for level in range(5):
        found, expected = logits[level].sigmoid(), tensor(f"tood.cls_{level}")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        centers = centers_of(expected)
        left_top, right_bottom = distances[level].split(2, dim=1)
        boxes = torch.cat((centers - left_top, centers + right_bottom), dim=1)
        torch.testing.assert_close(boxes, tensor(f"tood.reg_{level}"), rtol=0, atol=1e-4)


@torch.no_grad()
def test_boxes_of_mmdetection_that_fall_back(head):
    """They are those that the head would predict without offsets."""
    features = of_levels("feat")
    sampled = torch.cat([x.flatten(2) for x in head(features)[1]], dim=2)  # (2, 4, R)
    module, head.side_offsets = head.side_offsets, torch.nn.Conv2d(6 * 32, 8, 1)
    torch.nn.init.zeros_(head.side_offsets.weight)
    torch.nn.init.zeros_(head.side_offsets.bias)
    first = torch.cat([x.flatten(2) for x in head(features)[1]], dim=2)
    head.side_offsets = module
    falls = ((sampled - first).abs() < 1e-5).all(dim=1)
    assert torch.equal(falls, tensor("tood.fallback"))
    assert falls.sum() == 154


@pytest.mark.parametrize(("phase", "iteration"), PHASES.items())
def test_labels_of_mmdetection(anchors, phase, iteration):
    assignment, targets = assigned(anchors, as_predictions(published_maps()), iteration)
    first = len(tensor("gt_boxes_0"))
    for i in range(2):
        expected = tensor(f"tood.{phase}.assigned_{i}")
        expected = torch.where(expected >= 0, expected + i * first, expected)
        assert torch.equal(assignment.matched_idxs[i], expected)
    assert torch.equal(targets.labels, tensor(f"tood.{phase}.labels"))
    if phase == "tal":
        torch.testing.assert_close(targets.soft, tensor("tood.tal.targets"), rtol=1e-5, atol=1e-7)
    else:
        assert targets.soft is None


@pytest.mark.parametrize("case", ["", ".empty0", ".empty"])
@pytest.mark.parametrize(("phase", "iteration"), PHASES.items())
def test_losses_of_mmdetection(anchors, phase, iteration, case):
    predictions = as_predictions(published_maps())
    with_boxes = {"": (True, True), ".empty0": (False, True), ".empty": (False, False)}[case]
    _, targets = assigned(anchors, predictions, iteration, with_boxes)
    assert_losses(criterion_of()(predictions, targets), f"tood.{phase}{case}")


@pytest.mark.parametrize(("phase", "iteration"), PHASES.items())
def test_losses_of_mmdetection_leave_out_ignored_anchors(anchors, phase, iteration):
    """It leaves out anchors beyond an image's own padding; here, no rule takes them."""
    is_padding = []
    for level, stride in zip(of_levels("feat"), STRIDES):
        # Image 1 is padded to 192 x 160 pixels, the batch to 288 x 224.
        x, y = centers_of(level)
        is_padding.append(((x >= -(-160 // stride)) | (y >= -(-192 // stride))).flatten())
    far = [
        torch.where(mask[:, None], level + 1e4, level) for mask, level in zip(is_padding, anchors)
    ]
    is_padding = torch.cat(is_padding)
    predictions = as_predictions(published_maps())
    decoded = decode_predictions(predictions, anchors, CODER)
    decoded = decoded._replace(  # a score of 0 aligns with nothing
        logits=decoded.logits[1:].masked_fill(is_padding[:, None], -1e4), boxes=decoded.boxes[1:]
    )
    boxes, classes = tensor("gt_boxes_1") * 0.6, tensor("gt_classes_1")
    scene = scene_of_instances(
        far,
        [Instances((288, 224), gt_boxes=Boxes(boxes), gt_classes=classes)],
        num_classes=NUM_CLASSES,
        predictions=decoded,
        iteration=iteration,
    )
    second = look_up(
        matcher().assign(scene), scene, num_classes=NUM_CLASSES, anchors=torch.cat(anchors)
    )
    second.labels[:, is_padding] = -1
    _, first = assigned(anchors, predictions, iteration)
    targets = Targets(
        first.anchors,
        torch.cat((first.labels[:1], second.labels)),
        torch.cat((first.boxes[:1], second.boxes)),
        None if first.soft is None else torch.cat((first.soft[:1], second.soft)),
    )
    assert_losses(criterion_of()(predictions, targets), f"tood.{phase}.own_pad")


@pytest.mark.parametrize(("phase", "iteration"), PHASES.items())
def test_gradients_of_mmdetection(head, anchors, phase, iteration):
    head.zero_grad()
    features = [level.requires_grad_() for level in of_levels("feat")]
    predictions = as_predictions(head(features))
    _, targets = assigned(anchors, predictions, iteration)
    sum(criterion_of()(predictions, targets).values()).backward()
    assert_published_gradients(head, f"tood.{phase}", "tood", rtol=1e-4)
    for level in (2, 3, 4):
        expected = tensor(f"tood.{phase}.grad_feat_{level}")
        torch.testing.assert_close(features[level].grad, expected, rtol=1e-4, atol=1e-7)


def test_detections_of_mmdetection(anchors):
    """It does not clip boxes to the image, so we give ours an image around all of them."""
    shift = 1000.0
    predictions = as_predictions(published_maps())
    found = postprocess(
        predictions,
        [level + shift for level in anchors],
        [(5000, 5000)] * 2,
        nms_thresh=0.6,
        max_detections=100,
        box2box_transform=CODER,
    )
    for i, (boxes, scores, classes) in enumerate(found):
        expected = [tensor(f"tood.det_{part}_{i}") for part in ("boxes", "scores", "classes")]
        order = expected[1].argsort(descending=True, stable=True)
        expected = [values[order] for values in expected]
        outside = (expected[0][:, :2] < 0).any(1) | (
            expected[0][:, 2:] > tensor("sizes_wh")[i]
        ).any(1)
        assert 40 <= outside.sum() <= 59
        torch.testing.assert_close(scores, expected[1], rtol=0, atol=1e-5)
        assert torch.equal(classes, expected[2])
        torch.testing.assert_close(boxes - shift, expected[0], rtol=0, atol=1e-3)


# The criterion

ANCHORS = torch.tensor(
    [[0.0, 0, 64, 64], [8, 0, 72, 64], [16, 0, 80, 64], [0, 16, 128, 144], [16, 16, 144, 144]]
)
LABELS = torch.tensor([[2, 0, -1, 1, 2], [0, 1, 2, 2, 2]])  # 2 is background
MATCHED = torch.tensor([[10.0, 8, 50, 60], [20, 10, 100, 90]])


def predictions_of(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 2, 1, 5, generator=generator) * 3
    distances = torch.rand(2, 4, 1, 5, generator=generator) * 6 - 1
    maps = [[logits.to(dtype).requires_grad_()], [distances.to(dtype).requires_grad_()]]
    return maps, predictions_from_maps(maps, num_anchors=[1], num_classes=2, num_box_values=4)


def targets_of(soft=None, labels=LABELS):
    boxes = MATCHED[torch.arange(5) % 2].expand(2, 5, 4)
    return Targets(ANCHORS, labels, boxes, soft)


SOFT = torch.tensor([[0.0, 0.7, 0.0, 0.2, 0.0], [0.9, 0.4, 0.0, 0.0, 0.0]])


def each_anchor(predictions, targets):
    """Yields logits, label, predicted box, its target, anchor and soft target, as numbers."""
    for n in range(2):
        for r, anchor in enumerate(targets.anchors):
            box = CODER.apply_deltas(predictions.regression[0][n, r][None].detach(), anchor[None])
            yield (
                predictions.logits[0][n, r].tolist(),
                targets.labels[n, r].item(),
                box[0].tolist(),
                targets.boxes[n, r].tolist(),
                anchor.tolist(),
                None if targets.soft is None else targets.soft[n, r].item(),
            )


def test_losses_of_soft_targets_by_definition():
    _, predictions = predictions_of()
    targets = targets_of(SOFT)
    loss_cls = loss_box = total = 0.0
    for logits, label, box, target, _, soft in each_anchor(predictions, targets):
        for k, logit in enumerate(logits if label >= 0 else []):
            y = soft if k == label else 0.0
            loss_cls += abs(y - sigmoid(logit)) ** 2 * binary_cross_entropy(logit, y)
        if label in (0, 1):
            loss_box += soft * (1 - giou(box, target))
            total += soft
    assert total > 1
    losses = criterion_of(2)(predictions, targets)
    assert losses["loss_cls"].item() == pytest.approx(loss_cls / total, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(2 * loss_box / total, rel=1e-5)


def test_losses_of_the_warm_up_by_definition():
    _, predictions = predictions_of()
    targets = targets_of()
    rows = list(each_anchor(predictions, targets))
    loss_cls = focal_loss([row[0] for row in rows], [row[1] for row in rows])
    loss_box = weights = count = 0.0
    for _, label, box, target, anchor, _ in rows:
        if label in (0, 1):
            weight = centerness((anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2, target)
            loss_box += weight * (1 - giou(box, target))
            weights += weight
            count += 1
    losses = criterion_of(2)(predictions, targets)
    assert losses["loss_cls"].item() == pytest.approx(loss_cls / count, rel=1e-5)
    assert losses["loss_box_reg"].item() == pytest.approx(2 * loss_box / weights, rel=1e-5)


def test_small_soft_targets_are_divided_by_one():
    _, predictions = predictions_of()
    losses = [criterion_of(2)(predictions, targets_of(SOFT * factor)) for factor in (0.1, 0.2)]
    ratio = losses[1]["loss_box_reg"] / losses[0]["loss_box_reg"]
    assert ratio.item() == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("soft", [None, SOFT], ids=["warm-up", "aligned"])
def test_half_precision_is_computed_in_float32(soft):
    maps, predictions = predictions_of(torch.float16)
    losses = criterion_of(2)(predictions, targets_of(soft))
    wide = predictions._replace(
        logits=[x.float() for x in predictions.logits],
        regression=[x.float() for x in predictions.regression],
    )
    torch.testing.assert_close(losses, criterion_of(2)(wide, targets_of(soft)))
    sum(losses.values()).backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for (x,) in maps)


@pytest.mark.parametrize("soft", [None, torch.zeros(2, 5)], ids=["warm-up", "aligned"])
def test_without_positives_only_the_background_counts(soft):
    maps, predictions = predictions_of()
    losses = criterion_of(2)(predictions, targets_of(soft, torch.full((2, 5), 2)))
    assert losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    assert maps[0][0].grad.abs().min() > 0
    assert not maps[1][0].grad.any()


def test_soft_targets_get_no_gradient():
    _, predictions = predictions_of()
    soft = SOFT.clone().requires_grad_()
    sum(criterion_of(2)(predictions, targets_of(soft)).values()).backward()
    assert soft.grad is None


def test_a_loss_of_deltas_is_refused():
    with pytest.raises(ValueError, match='must be one of giou, diou, ciou, got "smooth_l1"'):
        TaskAlignedCriterion(box_reg_loss_type="smooth_l1")


# The detector


@pytest.mark.parametrize("boxes", [BOXES, [], [[5.0, 5, 5, 40]]], ids=["four", "none", "no area"])
def test_the_rule_and_the_losses_change_at_the_same_iteration(boxes):
    model = tood(warm_up_iterations=3)
    sums = []
    with EventStorage() as storage:
        for iteration in range(5):
            storage.iter = iteration
            losses = model([image(boxes), image(BOXES[:1])])
            assert list(losses) == ["loss_cls", "loss_box_reg"]
            sums.append([loss.item() for loss in losses.values()])
    assert sums[0] == sums[1] == sums[2] != sums[3] == sums[4]
    aligned = tood()([image(boxes), image(BOXES[:1])])
    assert sums[3] == [loss.item() for loss in aligned.values()]


@pytest.mark.parametrize("warm_up_iterations", [0, 1])
@pytest.mark.parametrize("bias", [-1e4, 1e4])
def test_gradients_are_finite_at_extreme_predictions(warm_up_iterations, bias):
    model = tood(warm_up_iterations=warm_up_iterations)
    head = model.head
    for part in (head.cls_score, head.alignment[-1], head.bbox_pred, head.side_offsets[-1]):
        torch.nn.init.constant_(part.bias, bias)
    with EventStorage():
        losses = model([image(BOXES), image()])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


@torch.no_grad()  # fake tensors have no gradients on a machine without a GPU
@pytest.mark.parametrize("warm_up_iterations", [0, 1])
def test_no_value_is_read_on_a_gpu(warm_up_iterations, monkeypatch):
    """A fake tensor has a device, but no values: what reads one, or mixes devices, fails."""
    grid._cached_grid.cache_clear()
    monkeypatch.setattr(atss, "training_iteration", lambda: 0)
    with warnings.catch_warnings(), FakeTensorMode(), torch.device("cuda"):
        warnings.filterwarnings("ignore", "User provided device_type of 'cuda'")
        model = tood(warm_up_iterations=warm_up_iterations).train()
        # Read once, before the first iteration.
        anchor_generator._HAS_CENTERED_CELLS[model.anchor_generator] = True
        with torch.device("cpu"):
            batch = [image(BOXES)["instances"], image()["instances"]]
        features = [torch.zeros(2, CHANNELS, *size) for size in ((8, 12), (4, 6))]
        maps = model.head(features)
        losses = model.forward_training(None, features, maps, [x.to("cuda") for x in batch])
        assert list(losses) == ["loss_cls", "loss_box_reg"]
        for loss in losses.values():
            assert (loss.device.type, loss.dtype, loss.dim()) == ("cuda", torch.float32, 0)
    grid._cached_grid.cache_clear()


def test_a_head_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"which PointDistances does not take: set box2box_tran"):
        tood(box2box_transform=PointDistances(anchor_scale=4))
    with pytest.raises(ValueError, match="TaskAlignedCriterion has no loss for the quality"):
        tood(head=toy_head())
