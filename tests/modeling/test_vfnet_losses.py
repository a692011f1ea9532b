"""VFNet's losses: published numbers and gradients, definitions, extremes, processes."""

import math

import pytest
import torch

from atss_d2.modeling import ATSSMatcher, SoftTargetCriterion, VFNetCriterion
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion import positives as positives_module
from atss_d2.modeling.labels import look_up
from atss_d2.modeling.matchers import BACKGROUND
from atss_d2.modeling.nouns import Assignment, Predictions, Targets
from atss_d2.modeling.postprocess import postprocess
from atss_d2.modeling.predictions import predictions_from_maps
from atss_d2.modeling.scene import build_scene
from tests import reference, vfnet
from tests.detector import build, image, toy_head
from tests.reference import published_quality


def criterion(**options):
    made = VFNetCriterion(**options)
    made.bind(box2box_transform=PointDistances(), num_classes=5)
    return made


def published_predictions():
    """From mmdetection's maps, whose distances are in pixels."""
    refined, first = (
        [x / stride for x, stride in zip(vfnet.of_levels(f"vfnet.{name}"), vfnet.STRIDES)]
        for name in ("reg_refine", "reg")
    )
    maps = [vfnet.of_levels("vfnet.cls"), refined, [], first]
    return predictions_from_maps(maps, num_anchors=[1] * 5, num_classes=5, num_box_values=4)


def published_targets(boxes=None, classes=None, within=None):
    """Targets of the published boxes.

    ``within`` (R,) tells which anchors image 1 has; the others are background.
    """
    boxes = vfnet.of_images("gt_boxes") if boxes is None else boxes
    classes = vfnet.of_images("gt_classes") if classes is None else classes
    scene = build_scene(vfnet.anchors(), boxes, gt_classes=classes)
    matched = ATSSMatcher().assign(scene).matched_idxs
    if within is not None:
        kept = within.split([len(x) for x in scene.anchors])
        second = build_scene([a[k] for a, k in zip(scene.anchors, kept)], boxes[1:])
        matched[1] = BACKGROUND
        own = ATSSMatcher().assign(second).matched_idxs[0]
        matched[1, within] = torch.where(own >= 0, own + len(boxes[0]), own)
    return look_up(Assignment(matched), scene, num_classes=5), matched


def test_labels_are_those_of_mmdetection():
    _, matched = published_targets()
    first, second = vfnet.of_images("vfnet.assigned")
    second = torch.where(second >= 0, second + len(vfnet.tensor("gt_boxes_0")), second)
    assert torch.equal(matched, torch.stack((first, second)))


def published_scenes():
    """Name of the numbers -> targets."""
    boxes, classes = vfnet.of_images("gt_boxes"), vfnet.of_images("gt_classes")
    no_boxes, no_classes = boxes[0][:0], classes[0][:0]
    # Image 1 of 140 x 175 pixels is padded to 160 x 192 of the 224 x 288.
    centers = (torch.cat(vfnet.anchors())[:, :2] + torch.cat(vfnet.anchors())[:, 2:]) / 2
    within = ((centers >= 0) & (centers < torch.tensor([160, 192]))).all(dim=1)
    return {
        "vfnet": published_targets()[0],
        "vfnet.empty0": published_targets([no_boxes, boxes[1]], [no_classes, classes[1]])[0],
        "vfnet.empty": published_targets([no_boxes] * 2, [no_classes] * 2)[0],
        "vfnet.own_pad": published_targets([boxes[0], 0.6 * boxes[1]], within=within)[0],
    }


@pytest.mark.parametrize("name", ["vfnet", "vfnet.empty0", "vfnet.empty", "vfnet.own_pad"])
def test_losses_are_those_of_mmdetection(name):
    losses = criterion()(published_predictions(), published_scenes()[name])
    assert list(losses) == list(vfnet.LOSSES)
    # Of background of low scores alone, 1 - p is rounded before its logarithm is taken.
    rel = 1e-5 if name == "vfnet.empty" else 1e-6
    for ours, theirs in vfnet.LOSSES.items():
        expected = vfnet.tensor(f"{name}.{theirs}").item()
        assert losses[ours].item() == pytest.approx(expected, rel=rel, abs=1e-9), ours


def test_steps_between_are_those_of_mmdetection(monkeypatch):
    """What the scores learn, the weights of the boxes, and what the losses are divided by."""
    seen = []
    original = VFNetCriterion._sum_of_boxes

    def record(self, positives):
        loss, quality = original(self, positives)
        dense = torch.zeros(2 * len(torch.cat(vfnet.anchors())))
        dense[positives.rows] = quality
        seen.append(dense.view(2, -1))
        return loss, quality

    monkeypatch.setattr(VFNetCriterion, "_sum_of_boxes", record)
    targets = published_scenes()["vfnet"]
    criterion()(published_predictions(), targets)
    for found, name in zip(seen, ("refine", "initial"), strict=True):
        expected = vfnet.tensor(f"vfnet.box_weights_{name}")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        norm = vfnet.tensor(f"vfnet.box_norm_{name}").item()
        assert found.sum().item() == pytest.approx(norm, rel=1e-6)
    is_class = targets.labels[..., None] == torch.arange(5)
    torch.testing.assert_close(
        is_class * seen[0][..., None], vfnet.tensor("vfnet.cls_targets"), rtol=1e-5, atol=1e-6
    )
    assert is_class.sum() == vfnet.tensor("vfnet.num_pos")


def test_gradients_are_those_of_mmdetection():
    """Of all parameters of the head, and of features."""
    head = vfnet.published_head()
    features = [x.requires_grad_() for x in vfnet.of_levels("feat")]
    predictions = predictions_from_maps(
        head(features), num_anchors=[1] * 5, num_classes=5, num_box_values=4
    )
    sum(criterion()(predictions, published_scenes()["vfnet"]).values()).backward()
    parameters = dict(head.named_parameters())
    names = published_quality()["vfnet.grad_names"].tolist()
    assert {vfnet.our_name(name) for name in names} == set(parameters)
    for name, norm in zip(names, vfnet.tensor("vfnet.grad_norms").tolist()):
        found = parameters[vfnet.our_name(name)].grad.norm().item()
        assert found == pytest.approx(norm, rel=1e-4, abs=1e-7), name
    for level in (2, 3, 4):
        expected = vfnet.tensor(f"vfnet.grad_feat_{level}")
        atol = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(features[level].grad, expected, rtol=0, atol=atol)


def detections(predictions, sizes):
    found = postprocess(predictions, vfnet.anchors(), sizes, box2box_transform=PointDistances())
    return [(boxes, scores, classes) for boxes, scores, classes in found]


def test_detections_are_those_of_mmdetection():
    """As sets; of the head's own maps, in evaluation."""
    with torch.no_grad():
        maps = vfnet.published_head().eval()(vfnet.of_levels("feat"))
    predictions = predictions_from_maps(maps, num_anchors=[1] * 5, num_classes=5, num_box_values=4)
    sizes = [(h, w) for w, h in vfnet.tensor("sizes_wh").tolist()]
    images = [(i, *x) for i, x in enumerate(detections(predictions, sizes))]
    images.append(("own", *detections(predictions, [sizes[0], (175, 140)])[1]))
    for i, *found in images:
        prefix, i = ("vfnet.own_pad", 1) if i == "own" else ("vfnet", i)
        vfnet.assert_published_detections(prefix, i, *found)


# ------------------------------------------------------------------------------ definitions


def small_batch(seed=0, dtype=torch.float32):
    """Predictions for two images of six anchors, and targets of which some are positive."""
    generator = torch.Generator().manual_seed(seed)
    corners = 16.0 * torch.arange(6)[:, None].expand(6, 2)
    anchors = torch.cat((corners, corners + 16), dim=1)  # of stride 2
    labels = torch.tensor([[0, 5, 5, 2, 1, 5], [5, 5, -1, 5, 5, 3]])
    boxes = anchors + 4 * torch.randn(2, 6, 4, generator=generator)
    logits = torch.randn(2, 6, 5, generator=generator)
    refined, first = 1 + 6 * torch.rand(2, 2, 6, 4, generator=generator)
    parts = [x.to(dtype).requires_grad_() for x in (logits, refined, first)]
    predictions = Predictions([parts[0]], [parts[1]], None, [parts[2]])
    return predictions, Targets(anchors, labels, boxes)


def by_loops(predictions, targets):
    """The three losses, one anchor and one class at a time, in float64."""
    cls, count = 0.0, 0
    boxes = {"regression": [], "first_regression": []}  # of (1 - GIoU, IoU) of positives
    for n, labels in enumerate(targets.labels.tolist()):
        for r, label in enumerate(labels):
            if label < 0:
                continue
            anchor, target = targets.anchors[r].tolist(), targets.boxes[n, r].tolist()
            x, y = (anchor[0] + anchor[2]) / 2, (anchor[1] + anchor[3]) / 2
            for name, found in boxes.items():
                left, top, right, bottom = (2 * getattr(predictions, name)[0][n, r]).tolist()
                box = (x - left, y - top, x + right, y + bottom)
                iou = float(reference.box_iou(box, target))
                if label < 5:
                    found.append((1 - reference.giou(box, target), iou))
            quality = boxes["regression"][-1][1] if label < 5 else 0
            count += label < 5
            for k, logit in enumerate(predictions.logits[0][n, r].tolist()):
                if k == label and quality > 0:
                    cls += quality * reference.binary_cross_entropy(logit, quality)
                else:
                    p = reference.sigmoid(logit)
                    cls += 0.75 * p**2 * reference.binary_cross_entropy(logit, 0)
    losses = {"loss_cls": cls / max(count, 1)}
    weights = {"loss_box_reg": 2.0, "loss_first_box_reg": 1.5}
    for found, (key, weight) in zip(boxes.values(), weights.items()):
        total = sum(loss * iou for loss, iou in found)
        losses[key] = weight * total / max(sum(iou for _, iou in found), 1)
    return losses


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_kept", [4, 1, 0])
def test_losses_equal_the_loops(seed, num_kept):
    """With one positive, or none, all normalizers are 1."""
    predictions, targets = small_batch(seed)
    labels = targets.labels.clone()
    for n, r in ((labels >= 0) & (labels < 5)).nonzero()[num_kept:]:
        labels[n, r] = 5
    targets = targets._replace(labels=labels)
    losses = criterion()(predictions, targets)
    expected = by_loops(predictions, targets)
    assert {k: x.item() for k, x in losses.items()} == pytest.approx(expected, rel=1e-5)
    sum(losses.values()).backward()
    for part in (predictions.regression, predictions.first_regression):
        assert part[0].grad.any() == (num_kept > 0)


def test_options():
    """They weigh, and name, what they say."""
    predictions, targets = small_batch()
    usual = criterion()(predictions, targets)
    changed = criterion(box_reg_loss_weight=1.0, first_box_reg_loss_weight=3.0)
    changed = changed(predictions, targets)
    assert (changed["loss_box_reg"] / usual["loss_box_reg"]).item() == pytest.approx(0.5)
    first = changed["loss_first_box_reg"] / usual["loss_first_box_reg"]
    assert first.item() == pytest.approx(2)
    assert torch.equal(changed["loss_cls"], usual["loss_cls"])
    for options in ({"varifocal_alpha": 0.5}, {"varifocal_gamma": 1.0}):
        assert criterion(**options)(predictions, targets)["loss_cls"] != usual["loss_cls"]
    assert criterion(box_reg_loss_type="diou")(predictions, targets)["loss_box_reg"] > 0
    with pytest.raises(ValueError, match="box_reg_loss_type must be one of"):
        criterion(box_reg_loss_type="smooth_l1")


def test_the_refined_loss_is_that_of_soft_targets():
    predictions, targets = small_batch()
    soft = SoftTargetCriterion(cls_loss="varifocal", box_weights="quality")
    soft.bind(box2box_transform=PointDistances(), num_classes=5)
    expected = soft(predictions, targets)
    found = criterion()(predictions, targets)
    torch.testing.assert_close({key: found[key] for key in expected}, expected)


def test_soft_targets_of_a_rule_take_the_place_of_qualities():
    predictions, targets = small_batch()
    soft = torch.where((targets.labels >= 0) & (targets.labels < 5), 0.5, 0.0)
    found = criterion()(predictions, targets._replace(soft=soft))
    moved = predictions._replace(first_regression=predictions.regression)
    found = criterion()(moved, targets._replace(soft=soft))
    ratio = found["loss_first_box_reg"] / found["loss_box_reg"]
    assert ratio.item() == pytest.approx(1.5 / 2)


# -------------------------------------------------------------------- extremes and precision


@pytest.mark.parametrize("value", [1e4, -1e4, 0.0])
def test_gradients_at_extremes_are_finite(value):
    predictions, targets = small_batch()
    for part in (predictions.logits, predictions.regression, predictions.first_regression):
        with torch.no_grad():
            part[0][:, ::2] = value  # positives and background
            part[0][0, 2] = math.inf if value > 0 else 0  # background, of a box that overflowed
    with torch.no_grad():
        predictions.logits[0][0, 2] = value
    losses = criterion()(predictions, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for part in (predictions.logits, predictions.regression, predictions.first_regression):
        assert part[0].grad.isfinite().all()


def test_boxes_that_miss_or_have_no_area_have_quality_zero():
    predictions, targets = small_batch()
    none = torch.zeros_like(targets.boxes)
    for boxes in (targets.boxes + 500, targets.boxes[..., [0, 1, 0, 1]], none):
        losses = criterion()(predictions, targets._replace(boxes=boxes))
        assert losses["loss_box_reg"] == losses["loss_first_box_reg"] == 0
        assert losses["loss_cls"].isfinite()
        sum(losses.values()).backward()
    assert predictions.regression[0].grad.isfinite().all()


def test_qualities_get_no_gradient():
    """A score with a target moves no box; a weight does not either."""
    predictions, targets = small_batch()
    losses = criterion()(predictions, targets)
    parts = [predictions.logits[0], predictions.regression[0], predictions.first_regression[0]]
    for i, loss in enumerate(losses.values()):
        gradients = torch.autograd.grad(loss, parts, retain_graph=True, allow_unused=True)
        assert [bool(x is not None and x.any()) for x in gradients] == [i == j for j in range(3)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    predictions, targets = small_batch(dtype=dtype)
    losses = criterion()(predictions, targets)
    wide = [[x[0].detach().float()] for x in predictions if x is not None]
    expected = criterion()(Predictions(wide[0], wide[1], None, wide[2]), targets)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    assert {x.dtype for x in losses.values()} == {torch.float32}


# ----------------------------------------------------------------------------- the detector


BOXES = [[3.0, 5, 40, 47], [30, 8, 90, 60], [50, 10, 71, 33], [0, 0, 96, 64]]


def test_the_detector_without_boxes():
    """In an image, and in all; every parameter has a gradient for DistributedDataParallel."""
    for boxes in (([], BOXES), ([], [])):
        model = vfnet.toy_vfnet()
        losses = model([image(x, seed=i) for i, x in enumerate(boxes)])
        assert list(losses) == list(vfnet.LOSSES)
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        for name in ("loss_box_reg", "loss_first_box_reg"):
            assert (losses[name] > 0) == any(boxes)


def test_losses_are_the_same_by_the_way_of_a_gpu(monkeypatch):
    model, batch = vfnet.toy_vfnet(), [image(BOXES), image()]
    expected = model(batch)
    monkeypatch.setattr(positives_module, "positive_rows", lambda _: slice(None))
    torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype):
    model, batch = vfnet.toy_vfnet(), [image(BOXES), image()]
    expected = {key: loss.item() for key, loss in model(batch).items()}
    with torch.autocast("cpu", dtype=dtype):
        losses = model(batch)
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(expected, rel=0.05)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="trains distances: set box2box_transform to PointDist"):
        build(head=vfnet.toy_head(), criterion=VFNetCriterion())
    without_first = vfnet.toy_vfnet(head=toy_head(with_centerness=False))
    with pytest.raises(ValueError, match="needs the first boxes that VFNetHead predicts"):
        without_first([image(BOXES)])
    with pytest.raises(ValueError, match="no loss for the quality that the head predicts"):
        vfnet.toy_vfnet(head=toy_head())
