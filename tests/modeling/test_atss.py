"""The meta-architecture: labels, losses, logged scalars, inference; test_processes.py has DDP."""

import itertools
import statistics

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from atss_d2.modeling import ATSSMatcher, ScaleRangeMatcher
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion import positives as positives_module
from atss_d2.modeling.criterion.positives import positive_rows
from atss_d2.modeling.matchers import BACKGROUND, IGNORED, DenseMatcher
from atss_d2.modeling.nouns import Assignment, Predictions
from atss_d2.modeling.scene import scene_of_instances
from tests import reference, reference_matching
from tests.detector import BOXES, build, image, toy_head
from tests.loss_loops import losses_by_loops, predictions_of

# ---------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("num_levels", "num_anchors", "num_classes"),
    [(1, 1, 1), (3, 3, 3), (3, 9, 80), (6, 1, 2)],
)
def test_a_training_step(num_levels, num_anchors, num_classes):
    model = build(num_levels, num_anchors, num_classes)
    batch = [image(BOXES, [0] * 4), image(BOXES[:1], [num_classes - 1], seed=1)]
    losses = model(batch)
    assert tuple(losses) == ("loss_cls", "loss_box_reg", "loss_centerness")
    for loss in losses.values():
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert loss > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        # The scalar of a level without positives has a gradient, of zero.
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if "scales" not in name:
            assert parameter.grad.abs().sum() > 0, name


WEIGHTS = {"alpha": 0.6, "gamma": 1.5, "box_weight": 0.3, "centerness_weight": 5.0}
OUR_WEIGHTS = {
    "focal_loss_alpha": 0.6,
    "focal_loss_gamma": 1.5,
    "box_reg_loss_weight": 0.3,
    "centerness_loss_weight": 5.0,
}


@pytest.mark.parametrize(
    ("num_levels", "num_anchors", "size", "ours", "options"),
    [
        (1, 1, (64, 96), {}, {}),
        (2, 3, (64, 96), {}, {}),
        (3, 1, (60, 88), {}, {}),  # images of different sizes
        (2, 1, (64, 96), OUR_WEIGHTS, WEIGHTS),
    ],
)
def test_losses_equal_the_loops(num_levels, num_anchors, size, ours, options):
    model = build(num_levels, num_anchors, **ours)
    batch = [image(BOXES), image(seed=1), image(BOXES[1:2], size=size, seed=2)]
    losses = {name: loss.item() for name, loss in model(batch).items()}
    assert losses == pytest.approx(losses_by_loops(model, batch, **options), rel=1e-4)


@pytest.mark.parametrize(
    "boxes",
    [
        [],
        [[10.2, 10.2, 11, 11]],  # between all centers
        [[10.0, 10, 10, 30], [30, 30, 10, 10]],  # no area, inverted
        [[-90.0, -90, -50, -50]],  # outside
    ],
    ids=str,
)
def test_batches_without_a_positive(boxes):
    model = build()
    batch = [image(boxes), image(boxes, seed=1)]
    losses = model(batch)
    assert losses["loss_box_reg"] == 0
    assert losses["loss_centerness"] == 0
    assert losses["loss_cls"] > 0
    assert losses["loss_cls"].isfinite()
    # All is background and the divisor is 1.
    assert losses["loss_cls"].item() == pytest.approx(
        losses_by_loops(model, batch)["loss_cls"], rel=1e-4
    )

    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name  # DistributedDataParallel waits for all of them
        assert parameter.grad.isfinite().all(), name
    assert model.head.cls_score.weight.grad.abs().sum() > 0
    assert model.head.bbox_pred.weight.grad.abs().sum() == 0
    assert model.head.ctrness.weight.grad.abs().sum() == 0


@pytest.mark.parametrize("rows", [positive_rows, lambda _: slice(None)], ids=["CPU", "GPU"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_what_the_box_branch_says_about_background_does_not_matter(value, rows, monkeypatch):
    """An anchor that takes no part has weight 0, and 0 times infinity is not 0."""
    monkeypatch.setattr(positives_module, "positive_rows", rows)
    model = build()
    anchors = model.anchor_generator([torch.zeros(1, 1, 8, 12), torch.zeros(1, 1, 4, 6)])
    targets = model.label_anchors(anchors, [image(BOXES[:2])["instances"]])
    gt_labels = targets.labels
    gt_labels[:, :7] = -1  # ignored
    sizes = [len(a) for a in anchors]
    logits = list(torch.randn(1, sum(sizes), 3).split(sizes, dim=1))
    deltas = torch.randn(1, sum(sizes), 4)
    centerness = torch.randn(1, sum(sizes))
    takes_no_part = (gt_labels == 3) | (gt_labels == -1)
    assert 0 < (~takes_no_part).sum() < 50

    def box_losses(deltas, centerness):
        deltas, centerness = deltas.clone().requires_grad_(), centerness.clone().requires_grad_()
        split = [list(x.split(sizes, dim=1)) for x in (deltas, centerness)]
        losses = model.losses(Predictions(logits, *split), targets)
        both = losses["loss_box_reg"], losses["loss_centerness"]
        return *both, *torch.autograd.grad(sum(both), (deltas, centerness))

    expected = box_losses(deltas, centerness)
    deltas = torch.where(takes_no_part[..., None], value, deltas)
    centerness = torch.where(takes_no_part, value, centerness)
    torch.testing.assert_close(box_losses(deltas, centerness), expected)


def test_losses_are_the_same_by_the_way_of_a_gpu(monkeypatch):
    model = build()
    batch = [image(BOXES), image(seed=1)]
    expected = gradients_of_losses(model, batch)
    monkeypatch.setattr(positives_module, "positive_rows", lambda _: slice(None))
    torch.testing.assert_close(gradients_of_losses(model, batch), expected)


def gradients_of_losses(model, batch):
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    return losses, [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("classes", "wrong"), [([0, 3], "3"), ([4, 2], "4"), ([-1, 0], "-1"), ([9, 7], "7, 9")]
)
def test_a_class_that_the_model_does_not_have(classes, wrong):
    model = build(num_classes=3)
    message = rf"gt_classes must be 0 to 2, got {wrong}: the model has num_classes=3, set it to"
    with pytest.raises(ValueError, match=message):
        model([image(BOXES[:2], [0, 2]), image(BOXES[:2], classes)])
    # Nothing asks for the class of an ignore region.
    regions = image(BOXES[:2], classes)
    regions["instances"].gt_ignore = torch.tensor([True, True])
    assert sum(model([image(BOXES[:2], [0, 2]), regions]).values()).isfinite()


def test_a_device_asserts_that_classes_are_in_range(monkeypatch):
    """Where the host must not wait: on a GPU, and in a graph."""
    seen = []
    monkeypatch.setattr(torch, "_assert_async", lambda x, message: seen.append((bool(x), message)))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for classes in ([0, 2], [2, 3], []):
        instances = [image(BOXES[: len(classes)], classes)["instances"]]
        scene_of_instances([torch.zeros(5, 4)], instances, num_classes=3)
    assert [valid for valid, _ in seen] == [True, False, True]
    assert "gt_classes must be 0 to 2: set num_classes" in seen[0][1]


def test_autocast_to_bfloat16():
    model = build()
    batch = [image(BOXES), image(seed=1)]
    expected = {name: loss.item() for name, loss in model(batch).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
    for loss in losses.values():
        assert loss.dtype == torch.float32
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=0.05)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32

    model.eval()
    expected = model(batch)[0]["instances"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        detections = model(batch)[0]["instances"]
    assert detections.scores.dtype == detections.pred_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(detections.scores[:10], expected.scores[:10], rtol=0, atol=0.03)


# ------------------------------------------------------------------------------------ labels


class StubMatcher(DenseMatcher):
    """Gives what it was told to."""

    def __init__(self, matched_idxs):
        super().__init__()
        self.matched_idxs = torch.tensor(matched_idxs)

    def match(self, scene):
        first = torch.tensor([(scene.image_idxs < i).sum() for i in range(scene.num_images)])
        return torch.where(
            self.matched_idxs >= 0, self.matched_idxs + first[:, None], self.matched_idxs
        )


def test_labels_of_matched_background_and_ignored_anchors():
    # Two images of two boxes, the second of none in between; 3 anchors on 2 levels.
    matcher = StubMatcher([[1, BACKGROUND, IGNORED], [IGNORED, -1, -1], [0, 1, 0]])
    model = build(num_classes=7, matcher=matcher)
    anchors = [
        Boxes(torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]])),
        Boxes(torch.tensor([[0.0, 0, 16, 16]])),
    ]
    batch = [image(BOXES[:2], [5, 6]), image(), image(BOXES[2:], [0, 3])]
    a, gt_labels, matched_boxes, soft, _ = model.label_anchors(
        anchors, [x["instances"] for x in batch]
    )

    assert gt_labels.tolist() == [[6, 7, -1], [-1, 7, 7], [0, 3, 0]]
    assert gt_labels.dtype == torch.int64
    a = a.tolist()
    assert a == Boxes.cat(anchors).tensor.tolist()
    assert soft is None
    assert matched_boxes.tolist() == [
        [BOXES[1], a[1], a[2]],
        [a[0], a[1], a[2]],
        [BOXES[2], BOXES[3], BOXES[2]],
    ]
    assert not matched_boxes.requires_grad


def test_an_image_without_background_has_no_box_without_positive():
    """The count must not mistake "no box" for a box when no anchor is background."""
    model = build(1, matcher=StubMatcher([[0, 1] * 48]))
    with EventStorage() as storage:
        model([image(BOXES[:2])])
        assert storage.latest()["atss/gt_without_positive"][0] == 0
        assert storage.latest()["atss/num_positives"][0] == 96


def test_ignored_anchors_have_no_loss_and_no_gradient():
    shapes = [(8, 12), (4, 6)]
    num_anchors = sum(h * w for h, w in shapes)
    idxs = torch.randint(-2, 2, (1, num_anchors))
    model = build(matcher=StubMatcher(idxs.tolist()))
    anchors = model.anchor_generator([torch.zeros(1, 1, h, w) for h, w in shapes])
    instances = [image(BOXES[:2])["instances"]]
    sizes = [h * w for h, w in shapes]
    targets = model.label_anchors(anchors, instances)
    predictions = [
        torch.randn(1, num_anchors, *rest, requires_grad=True) for rest in ((3,), (4,), ())
    ]
    losses = model.losses(Predictions(*(list(p.split(sizes, dim=1)) for p in predictions)), targets)
    grads = torch.autograd.grad(sum(losses.values()), predictions)
    assert (grads[0][idxs == IGNORED] == 0).all()
    assert (grads[0][idxs != IGNORED] != 0).all()
    assert (grads[1][idxs < 0] == 0).all()
    assert (grads[2][idxs < 0] == 0).all()
    assert (grads[2][idxs >= 0] != 0).all()


# ------------------------------------------------------------------------------------ logging


class BackwardsAnchorGenerator(DefaultAnchorGenerator):
    """As many anchors as on a grid, but from the last to the first."""

    def forward(self, features):
        return [Boxes(anchors.tensor.flip(0)) for anchors in super().forward(features)]


def test_anchors_of_another_generator_are_not_taken_for_a_grid(monkeypatch):
    generator = BackwardsAnchorGenerator(
        sizes=[[32], [64]], aspect_ratios=[1.0], strides=[8, 16], offset=0.5
    )
    model, seen = build(anchor_generator=generator), []
    label_anchors = model.label_anchors
    monkeypatch.setattr(model, "losses", lambda *args: seen.append(args))
    model([image(BOXES)])
    _, targets = seen[0]
    anchors = [Boxes(a) for a in targets.anchors.split([96, 24])]
    levels = [a.tensor.tolist() for a in anchors]
    matched = reference_matching.atss_match(levels, BOXES)
    classes = image(BOXES)["instances"].gt_classes.tolist()
    assert targets.labels[0].tolist() == [classes[m] if m >= 0 else 3 for m in matched]
    torch.testing.assert_close(label_anchors(anchors, [image(BOXES)["instances"]]), targets)


def test_logged_scalars_by_hand():
    """Anchors side by side: 4 x 4 of 8 x 8 px on p3 and 2 x 2 of 16 x 16 px on p4."""
    model = build(anchor_scale=1)
    batch = [
        # The first box is an anchor of p3 and a quarter of one of p4: one positive.
        # The second, around (16, 16), holds no center. It meets 4 anchors on each level.
        image([[8.0, 8, 16, 16], [15, 15, 17, 17]], size=(32, 32)),
        image(size=(32, 32)),
        # The whole image: 9 candidates of IoU 1/16 on p3, 4 of IoU 1/4 on p4, which are positive.
        image([[0.0, 0, 32, 32]], size=(32, 32)),
    ]
    ious = [
        [1.0, 0.25] + [0.0] * 11,
        [1 / 67] * 4 + [1 / 259] * 4 + [0.0] * 5,
        [1 / 16] * 9 + [1 / 4] * 4,
    ]
    thresholds = [statistics.mean(values) + statistics.stdev(values) for values in ious]
    assert 0.25 < thresholds[0] < 1
    assert 1 / 16 < thresholds[2] < 1 / 4
    with EventStorage() as storage:
        model(batch)
        logged = {name: value for name, (value, _) in storage.latest().items()}
    assert logged == pytest.approx(
        {
            "atss/num_positives": 5 / 3,  # means over the three images
            "atss/num_positives_p3": 1 / 3,
            "atss/num_positives_p4": 4 / 3,
            "atss/gt_without_positive": 1 / 3,
            "atss/mean_threshold": statistics.mean(thresholds),
        },
        rel=1e-5,
    )


def test_boxes_without_a_positive_are_counted():
    model = build()
    tiny = [[10.2, 10.2, 11, 11], [20.2, 20.2, 21, 21]]
    for boxes, count in ((BOXES[:1], 0), (tiny, 2), ([*tiny, *BOXES[:1]], 2), ([], 0)):
        with EventStorage() as storage:
            model([image(boxes), image(boxes)])
            assert storage.latest()["atss/gt_without_positive"][0] == count
    # Of equal boxes the first gets all anchors.
    with EventStorage() as storage:
        model([image([BOXES[0]] * 3)])
        assert storage.latest()["atss/gt_without_positive"][0] == 2
    model.matcher = ATSSMatcher(min_positives=1)
    with EventStorage() as storage:
        model([image(tiny)])
        assert storage.latest()["atss/gt_without_positive"][0] == 0
        assert storage.latest()["atss/num_positives"][0] == 2


def test_what_a_matcher_reports_is_logged():
    matcher = StubMatcher([[BACKGROUND] * 120])
    matched = torch.full((1, 120), BACKGROUND)
    matcher.match = lambda scene: Assignment(matched, stats={"answer": torch.tensor(42.0)})
    model = build(matcher=matcher)
    with EventStorage() as storage:
        model([image()])
        assert storage.latest()["atss/answer"][0] == 42
        assert "atss/mean_threshold" not in storage.latest()


# ---------------------------------------------------------------------------------- inference


def detect(model, batch):
    model.eval()
    with torch.no_grad():
        return [x["instances"] for x in model(batch)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"test_score_thresh": 0.5},
        {"test_topk_candidates": 15},
        {"test_nms_thresh": 0.21},
        {"max_detections_per_image": 12},
    ],
    ids=str,
)
def test_detections_equal_the_loops(options):
    model = build(num_anchors=3, **options)
    batch = [image(size=(64, 64), seed=5), image(size=(50, 96), seed=6)]
    detections = detect(model, batch)

    levels, predictions = predictions_of(model, batch)
    starts = list(itertools.accumulate(map(len, levels), initial=0))
    for i, size in enumerate([(64, 64), (50, 96)]):
        logits, deltas, centerness = (
            [x[i][a:b] for a, b in itertools.pairwise(starts)] for x in predictions
        )
        expected = reference.detections(
            levels,
            logits,
            deltas,
            [[c for (c,) in level] for level in centerness],
            size,
            score_thresh=options.get("test_score_thresh", 0.05),
            topk_candidates=options.get("test_topk_candidates", 1000),
            nms_thresh=options.get("test_nms_thresh", 0.6),
            max_detections=options.get("max_detections_per_image", 100),
        )
        # Detectron2 drops boxes that lie outside of the image.
        expected = [e for e in expected if e[2][2] > e[2][0] and e[2][3] > e[2][1]]
        assert len(expected) > 10
        assert detections[i].image_size == size
        assert detections[i].pred_classes.tolist() == [k for _, k, _ in expected]
        torch.testing.assert_close(
            detections[i].pred_boxes.tensor,
            torch.tensor([box for _, _, box in expected]),
            rtol=1e-4,
            atol=1e-3,
        )
        torch.testing.assert_close(
            detections[i].scores, torch.tensor([score for score, _, _ in expected])
        )


# ----------------------------------------------------------------------------------- building


def anchors_of(strides, num=1):
    return DefaultAnchorGenerator(
        sizes=[[4 * s * (1 + i) for i in range(num)] for s in strides],
        aspect_ratios=[1.0],
        strides=strides,
    )


def mixed_anchors():
    return DefaultAnchorGenerator(sizes=[[32], [64, 80]], aspect_ratios=[1.0], strides=[8, 16])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"head_in_features": ["p3", "p9"]},
            r"head_in_features \['p9'\] are not among the backbone's features \['p3', 'p4'\]",
        ),
        ({"input_format": "rgb"}, 'must be "BGR" or "RGB", got "rgb"'),
        ({"head_in_features": ["p3"]}, r"strides \[8, 16\], but .*\['p3'\] have strides \[8\]"),
        ({"head_in_features": ["p4", "p3"]}, r"strides \[8, 16\], but .* have strides \[16, 8\]"),
        (
            {"anchor_generator": anchors_of([4, 8])},
            r"strides \[4, 8\], but the features \['p3', 'p4'\] have strides \[8, 16\]",
        ),
        (
            {"anchor_generator": anchors_of([8, 16], num=3)},
            r"head was built for num_anchors=1 per location, .* gives \[3, 3\]",
        ),
        (
            {"anchor_generator": mixed_anchors()},
            r"head was built for num_anchors=1 per location, .* gives \[1, 2\]",
        ),
        ({"matcher": ATSSMatcher(num_anchors=9)}, r"matcher was built for num_anchors=9"),
        (
            {"num_classes": 4, "head": toy_head()},
            "num_classes=4, but the head was built for 3 classes",
        ),
        (
            {"box_reg_loss_type": "iou"},
            'box_reg_loss_type must be one of smooth_l1, giou, diou, ciou, got "iou"',
        ),
        ({"test_score_type": "root"}, 'test_score_type must be one of sqrt, product, got "root"'),
        ({"test_rank_by": "x"}, 'test_rank_by must be one of score, class_score, got "x"'),
        ({"centerness_inset": -0.5}, "centerness_inset must be >= 0, got -0.5"),
        (
            {"matcher": ScaleRangeMatcher(strides=(8, 32))},
            r"matcher was built for strides=\(8, 32\), but .*16\)",
        ),
        (
            {"num_anchors": 3, "box2box_transform": PointDistances()},
            r"PointDistances .* gives \[3, 3\] on its levels",
        ),
    ],
    ids=lambda x: x[:30] if isinstance(x, str) else "+".join(x),
)
def test_parts_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
