"""PAA's losses: published numbers and gradients, normalizers, extremes.

That two processes train like one is a test of test_processes.py.
"""

import pytest
import torch
from detectron2.layers import ShapeSpec

from atss_d2.checkpoint.foreign_names import our_names
from atss_d2.modeling import ATSSHead, IoUBranchCriterion, PAAMatcher
from atss_d2.modeling.accumulation import knows_totals
from atss_d2.modeling.labels import look_up
from atss_d2.modeling.nouns import Predictions, Targets
from atss_d2.modeling.predictions import decode_predictions, predictions_from_maps
from atss_d2.modeling.scene import build_scene
from tests import paa_scene
from tests.detector import build
from tests.paa_scene import CODER, LEVELS, numbers, of_images, tensor

MMDET = {"giou_cost_weight": 1.3, "low_quality_override": True, "keep_undivided": False}
PARTS = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_iou": "loss_iou"}


def criterion(**options):
    """PAA's, with the normalizers of mmdetection unless options say otherwise."""
    options = {
        "box_reg_loss_weight": 1.3,
        "quality_weighted_box_loss": True,
        "quality_loss_weight": 0.5,
        "floor_by_images": True,
        **options,
    }
    made = IoUBranchCriterion(**options)
    made.bind(box2box_transform=CODER, num_classes=5)
    return made


def targets_of(predictions, boxes, classes):
    anchors = paa_scene.anchors()
    scene = build_scene(anchors, boxes)._replace(
        classes=torch.cat(classes), predictions=decode_predictions(predictions, anchors, CODER)
    )
    return look_up(PAAMatcher(**MMDET).assign(scene), scene, num_classes=5)


def published_scene(name):
    """Boxes and classes of both images."""
    boxes, classes = of_images("gt_boxes"), of_images("gt_classes")
    for i in {"paa.empty0": [0], "paa.empty": [0, 1]}.get(name, []):
        boxes[i], classes[i] = boxes[i][:0], classes[i][:0]
    if name == "paa.own_pad":
        boxes[1] = boxes[1] * 0.6
    return boxes, classes


@pytest.mark.parametrize("name", ["paa", "paa.empty0", "paa.empty", "paa.own_pad"])
def test_losses_are_those_of_mmdetection(name):
    """The gradients of the box loss and its weights included; see ``empty`` for float64."""
    predictions = paa_scene.predictions()
    targets = targets_of(predictions, *published_scene(name))
    if name == "paa.own_pad":
        # Anchors beyond the padding of an image alone, 192 x 160, have no loss in mmdetection. For
        # us, as for PAA's authors, they are background like the rest of the batch's padding.
        ours = criterion()(predictions, targets)["loss_cls"].item()
        assert ours == pytest.approx(numbers["paa.own_pad.loss_cls"], rel=3e-3)
        assert ours != pytest.approx(numbers["paa.own_pad.loss_cls"], rel=1e-3)
        strides = (targets.anchors[:, 2] - targets.anchors[:, 0]) / 8
        column, row = ((targets.anchors[:, i] / strides + 4).round() for i in (0, 1))
        is_beyond = (column >= (160 / strides).ceil()) | (row >= (192 / strides).ceil())
        assert not (is_beyond & (targets.labels[1] < 5)).any()
        targets.labels[1, is_beyond] = -1
    if name == "paa.empty":
        # In float32 the sum over 13,490 small terms is rounded by 1.4e-5.
        predictions = Predictions(*([x.double() for x in part] for part in predictions[:3]))
    losses = criterion()(predictions, targets)
    assert list(losses) == list(PARTS)
    for ours, theirs in PARTS.items():
        expected = float(numbers[f"{name}.{theirs}"])
        assert losses[ours].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_gradients_are_those_of_mmdetection():
    """Of all parameters of the head, and of features."""
    head = ATSSHead(
        input_shape=[ShapeSpec(channels=32)] * 5,
        num_classes=5,
        conv_dims=[32] * 4,
        conv_bias=False,
    )
    prefix = "paa.sd."
    keys = [key.removeprefix(prefix) for key in numbers if key.startswith(prefix)]
    names = {k: v.removeprefix("head.") for k, v in our_names(keys, "mmdet").items()}
    head.load_state_dict({names[key]: tensor(prefix + key) for key in keys})
    features = [tensor(f"feat_{level}").requires_grad_() for level in LEVELS]
    maps = head(features)
    for name, levels in zip(("cls", "reg", "iou"), maps):
        for level, found in enumerate(levels):
            expected = tensor(f"paa.{name}_{level}")
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    predictions = predictions_from_maps(maps, num_anchors=[1] * 5, num_classes=5, num_box_values=4)
    targets = targets_of(predictions, *published_scene("paa"))
    sum(criterion()(predictions, targets).values()).backward()
    parameters = dict(head.named_parameters())
    grad_names = numbers["paa.grad_names"].tolist()
    assert len(grad_names) == len(parameters)
    for name, norm in zip(grad_names, numbers["paa.grad_norms"].tolist()):
        (ours,) = our_names([f"bbox_head.{name.removeprefix('bbox_head.')}"], "mmdet").values()
        found = parameters[ours.removeprefix("head.")].grad.norm().item()
        assert found == pytest.approx(norm, rel=1e-3, abs=1e-6), name
    for level in (2, 3, 4):
        expected = tensor(f"paa.grad_feat_{level}")
        torch.testing.assert_close(
            features[level].grad, expected, rtol=0, atol=1e-4 * expected.abs().max().item()
        )


def small_batch(seed=0, dtype=torch.float32):
    """Predictions for two images of six anchors, and targets of which some are positive."""
    generator = torch.Generator().manual_seed(seed)
    anchors = 8 * torch.tensor([[x, 0.0, x + 2, 2] for x in range(6)])
    labels = torch.tensor([[0, 5, 5, 2, 1, 5], [5, 5, -1, 5, 5, 5]])
    boxes = anchors + torch.randn(2, 6, 4, generator=generator)
    logits, regression, quality = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((2, 6, 5), (2, 6, 4), (2, 6))
    )
    return Predictions([logits], [regression], [quality]), Targets(anchors, labels, boxes)


def test_the_floor_of_the_classification_loss_by_images():
    """Three positives in two images, one, or none: divided by 3, 2 and 2; else by 3, 1 and 1."""
    predictions, targets = small_batch()
    for num_kept, ratio in ((3, 1.0), (1, 2.0), (0, 2.0)):
        labels = targets.labels.clone()
        positives = ((labels >= 0) & (labels < 5)).nonzero()
        for i, r in positives[num_kept:]:
            labels[i, r] = 5
        some = targets._replace(labels=labels)
        by_images = criterion()(predictions, some)
        usual = criterion(floor_by_images=False)(predictions, some)
        assert (usual["loss_cls"] / by_images["loss_cls"]).item() == pytest.approx(ratio)
        for name in ("loss_box_reg", "loss_iou"):
            assert torch.equal(usual[name], by_images[name])
            assert (usual[name] > 0) == (num_kept > 0)


@pytest.mark.parametrize("number", [1e4, -1e4])
def test_gradients_at_extremes_are_finite(number):
    predictions, targets = small_batch()
    for part in predictions[:3]:
        with torch.no_grad():
            part[0][0, 0] = number
            part[0][1, 0] = -number
    sum(criterion()(predictions, targets).values()).backward()
    for part in predictions[:3]:
        assert part[0].grad.isfinite().all()


def test_boxes_of_zero_area_and_overlap_have_losses():
    """All predicted boxes miss: the weights of their losses are 0, and their sum is not floored."""
    predictions, targets = small_batch()
    far = targets._replace(boxes=targets.boxes + 500)
    losses = criterion()(predictions, far)
    assert losses["loss_box_reg"] == 0
    assert losses["loss_iou"] > 0
    none = targets._replace(boxes=targets.boxes[..., [0, 1, 0, 1]])
    losses = criterion()(predictions, none)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_box_reg"] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    predictions, targets = small_batch(dtype=dtype)
    losses = criterion()(predictions, targets)
    wide = Predictions(*([x.detach().float() for x in part] for part in predictions[:3]))
    torch.testing.assert_close(losses, criterion()(wide, targets), rtol=1e-6, atol=0)
    assert {x.dtype for x in losses.values()} == {torch.float32}


@pytest.mark.parametrize("floor_by_images", [False, True])
def test_micro_batches_are_normalized_together(floor_by_images):
    """Unless weights of boxes depend on predictions, the whole batch is counted beforehand."""
    options = {"quality_weighted_box_loss": False, "floor_by_images": floor_by_images}
    made, (predictions, targets) = criterion(**options), small_batch()
    assert knows_totals(build(criterion=criterion(**options)))
    whole = made(predictions, targets)
    halves = [
        (
            Predictions(*([x[i : i + 1] for x in part] for part in predictions[:3])),
            targets._replace(labels=targets.labels[i : i + 1], boxes=targets.boxes[i : i + 1]),
        )
        for i in range(2)
    ]
    counts = [made.totals(part, with_quality=True) for _, part in halves]
    with made.normalized_by([sum(parts) for parts in zip(*counts)]) as seen:
        parts = [made(*half) for half in halves]
    assert [[x.item() for x in totals] for totals in seen] == [
        [x.item() for x in totals] for totals in counts
    ]
    for name, loss in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), loss)

    weighted = criterion(floor_by_images=floor_by_images)
    assert weighted.totals(targets, with_quality=True) is None
    assert not knows_totals(build(criterion=weighted))
