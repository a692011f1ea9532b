"""Rules, coders, losses and predictors are interchangeable: the experiments of Tables 1 to 3."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from atss_d2.modeling import (
    ATSSHead,
    ATSSMatcher,
    CenterSamplingMatcher,
    IoUMatcher,
    ScaleRangeMatcher,
    TopKMatcher,
)
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion.box_losses import BOX_REG_LOSS_TYPES, box_reg_loss
from tests import reference
from tests.detector import BOXES, CHANNELS, build, image

STRIDES = (8, 16)
MATCHERS = {
    "atss": ATSSMatcher(),
    "iou": IoUMatcher(),
    "iou in-GT": IoUMatcher(center_in_gt=True),
    "scale range": ScaleRangeMatcher(strides=STRIDES),
    "center sampling": CenterSamplingMatcher(strides=STRIDES),
    "nearest": CenterSamplingMatcher(strides=STRIDES, radius=None, topk=9),
    "topk": TopKMatcher(),
}
CODERS = {"box": Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), "point": PointDistances(anchor_scale=4)}


def head(num_levels=2, **options):
    return ATSSHead(
        input_shape=[ShapeSpec(channels=CHANNELS)] * num_levels,
        num_classes=3,
        conv_dims=[CHANNELS],
        **options,
    )


# -------------------------------------------------------------------------- any x any x any


@pytest.mark.parametrize(
    ("matcher", "coder", "loss"), list(itertools.product(MATCHERS, CODERS, BOX_REG_LOSS_TYPES))
)
def test_any_rule_coder_and_loss_train_and_detect(matcher, coder, loss):
    model = build(
        matcher=copy.deepcopy(MATCHERS[matcher]),
        box2box_transform=CODERS[coder],
        box_reg_loss_type=loss,
        head=head(bbox_pred_bias=2.0 if coder == "point" else 0.0),
    )
    batch = [image(BOXES), image(seed=1)]
    losses = model(batch)
    assert losses["loss_box_reg"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert model.head.bbox_pred.weight.grad.abs().sum() > 0
    with torch.no_grad():
        for x in model.eval()(batch):
            assert len(x["instances"]) > 0
            assert x["instances"].pred_boxes.tensor.isfinite().all()


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("centerness", [True, False])
def test_any_coder_and_head_can_be_traced(coder, centerness):
    """With an image of another size, and with another number of candidates and detections."""
    bias = 2.0 if coder == "point" else 0.0
    model = build(
        box2box_transform=CODERS[coder],
        head=head(with_centerness=centerness, bbox_pred_bias=bias),
        test_score_thresh=0.05,
        test_topk_candidates=20,  # more and fewer candidates than these occur below
    ).eval()
    sample, sizes = {"image": image()["image"]}, set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is constant in a trace, and that tracing is old
        adapter = TracingAdapter(model, [sample], lambda model, inputs: model(inputs))
        traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    for size, darker in (((64, 96), 8), ((96, 64), 1), ((48, 160), 1)):
        x = image(seed=3, size=size)["image"] // darker
        with torch.no_grad():
            (found,) = adapter.outputs_schema(traced(x))
            (expected,) = model([{"image": x}])
        found, expected = found["instances"], expected["instances"]
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        torch.testing.assert_close(found.scores, expected.scores)
        sizes.add(len(found))
    assert len(sizes) > 1
    assert min(sizes) > 0


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("loss", BOX_REG_LOSS_TYPES)
def test_training_moves_the_boxes_to_their_objects(coder, loss):
    model = build(
        box2box_transform=CODERS[coder],
        box_reg_loss_type=loss,
        head=head(bbox_pred_bias=2.0 if coder == "point" else 0.0),
    )
    nn.init.normal_(model.head.bbox_pred.weight, std=0.01)  # as training starts
    batch = [image(BOXES[:3])]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    values = []
    for _ in range(30):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        values.append(losses["loss_box_reg"].item())
    assert values[-1] < 0.75 * values[0]


# ------------------------------------------------------------------ each switch by the loops


def predictions_of(model, batch):
    """Anchors (R), and per image: logits (R, K), deltas (R, 4) and centerness (R) as lists."""
    images = model.preprocess_image(batch)
    features = list(model.backbone(images.tensor).values())
    sizes = (model.num_classes, 4, 1)
    maps = [
        torch.cat([m.permute(0, 2, 3, 1).reshape(len(batch), -1, size) for m in levels], dim=1)
        for levels, size in zip(model.head(features), sizes)
    ]
    levels = [a.tensor.tolist() for a in model.anchor_generator(features)]
    return levels, [m.tolist() for m in maps]


def losses_by_loops(
    model, batch, *, centerness, weighted, loss, beta=0.11, inset=0.0, floor_per_image=False
):
    """Losses with the switches of Table 1, written down term by term."""
    levels, (logits, deltas, *centerness_logits) = predictions_of(model, batch)
    anchors = [anchor for level in levels for anchor in level]
    cls = box = ctr = sum_weights = 0.0
    num_positives = 0
    for n, x in enumerate(batch):
        gt_boxes = x["instances"].gt_boxes.tensor.tolist()
        gt_classes = x["instances"].gt_classes.tolist()
        matched = atss_match(levels, gt_boxes)
        labels = [gt_classes[m] if m >= 0 else model.num_classes for m in matched]
        cls += reference.focal_loss(logits[n], labels)
        num_positives += floor_per_image and all(m < 0 for m in matched)
        for r, m in enumerate(matched):
            if m < 0:
                continue
            num_positives += 1
            x1, y1, x2, y2 = anchors[r]
            target = reference.centerness((x1 + x2) / 2, (y1 + y2) / 2, gt_boxes[m], inset)
            weight = target if centerness and weighted else 1.0
            sum_weights += weight
            if loss == "giou":
                decoded = reference.decode(deltas[n][r], anchors[r])
                box += weight * (1 - reference.giou(decoded, gt_boxes[m]))
            else:
                box += weight * smooth_l1(deltas[n][r], encode(anchors[r], gt_boxes[m]), beta)
            if centerness:
                ctr += reference.binary_cross_entropy(centerness_logits[0][n][r][0], target)
    result = {"loss_cls": cls / num_positives, "loss_box_reg": 2.0 * box / sum_weights}
    return {**result, "loss_centerness": ctr / num_positives} if centerness else result


def atss_match(levels, boxes):
    anchors = [torch.tensor(level) for level in levels]
    return ATSSMatcher()(anchors, [torch.tensor(boxes).reshape(-1, 4)])[0].tolist()


def encode(anchor, box):
    """(dx, dy, dw, dh) with weights (10, 10, 5, 5)."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return [
        10 * ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / width,
        10 * ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / height,
        5 * math.log((box[2] - box[0]) / width),
        5 * math.log((box[3] - box[1]) / height),
    ]


def smooth_l1(values, targets, beta):
    total = 0.0
    for value, target in zip(values, targets, strict=True):
        error = abs(value - target)
        total += 0.5 * error**2 / beta if error < beta else error - 0.5 * beta
    return total


@pytest.mark.parametrize("loss", ["giou", "smooth_l1"])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("centerness", [True, False])
def test_losses_equal_the_loops(centerness, weighted, loss):
    model = build(
        head=head(with_centerness=centerness),
        box_reg_loss_type=loss,
        centerness_weighted_box_loss=weighted,
    )
    batch = [image(BOXES), image(seed=1), image(BOXES[1:2], seed=2)]
    losses = {name: value.item() for name, value in model(batch).items()}
    expected = losses_by_loops(model, batch, centerness=centerness, weighted=weighted, loss=loss)
    assert list(losses) == list(expected)
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("inset", "floor_per_image"), [(0.5, False), (0.0, True), (2.0, True)])
@pytest.mark.parametrize("weighted", [True, False])
def test_losses_of_other_conventions_equal_the_loops(weighted, inset, floor_per_image):
    options = {"inset": inset, "floor_per_image": floor_per_image}
    model = build(
        centerness_inset=inset,
        floor_per_image=floor_per_image,
        centerness_weighted_box_loss=weighted,
    )
    # Of the third and the fourth image none is positive: no boxes, a box between the centres.
    batch = [image(BOXES), image(BOXES[1:2], seed=1), image(seed=2), image([[5.0, 5, 7, 7]])]
    losses = {name: value.item() for name, value in model(batch).items()}
    arguments = {"centerness": True, "weighted": weighted, "loss": "giou"}
    expected = losses_by_loops(model, batch, **arguments, **options)
    assert losses == pytest.approx(expected, rel=1e-4)
    plain = losses_by_loops(model, batch, **arguments)
    assert abs(losses["loss_centerness"] / plain["loss_centerness"] - 1) > 0.005


def test_images_without_positives_count_in_the_floor():
    """The same image, alone and beside three empty ones: P and P + 3 to divide by."""
    batch = [image(BOXES), *[image(seed=i) for i in range(1, 4)]]
    floored, plain = build(floor_per_image=True)(batch), build()(batch)
    matched = atss_match(predictions_of(build(), batch)[0], BOXES)
    num_positives = sum(m >= 0 for m in matched)
    for name in ("loss_cls", "loss_centerness"):
        ratio = (plain[name] / floored[name]).item()
        assert ratio == pytest.approx((num_positives + 3) / num_positives)
    assert torch.equal(floored["loss_box_reg"], plain["loss_box_reg"])
    # Where every image has a positive, and where none has, there is nothing to count.
    for batch in ([image(BOXES), image(BOXES[:1])], [image()]):
        floored, plain = build(floor_per_image=True)(batch), build()(batch)
        for name, loss in plain.items():
            assert torch.equal(floored[name], loss)


def test_the_inset_of_centerness_is_not_negative():
    with pytest.raises(ValueError, match="centerness_inset must be >= 0, got -0.5"):
        build(centerness_inset=-0.5)


def test_beta_is_where_the_parabola_ends():
    anchors = torch.tensor([[0.0, 0, 64, 64]])
    deltas = CODERS["box"].get_deltas(anchors, anchors) + torch.tensor([[0.1, -0.2, 3, 0]])
    for beta, expected in (
        (0.0, 0.1 + 0.2 + 3),
        (0.15, 0.1**2 / 0.3 + 0.2 - 0.075 + 3 - 0.075),
        (1.0, 0.1**2 / 2 + 0.2**2 / 2 + 2.5),
    ):
        loss = box_reg_loss(
            deltas,
            anchors,
            anchors,
            box2box_transform=CODERS["box"],
            loss_type="smooth_l1",
            smooth_l1_beta=beta,
        )
        torch.testing.assert_close(loss, torch.tensor([expected]))


def test_diou_and_ciou_by_hand():
    """A quarter of the box, in its corner: IoU 1/4, centre off by (2, 2), diagonal (8, 8)."""
    box, anchor = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[0.0, 0, 4, 4]])
    deltas = CODERS["box"].get_deltas(anchor, anchor)

    def loss(name):
        return box_reg_loss(
            deltas, anchor, box, box2box_transform=CODERS["box"], loss_type=name
        ).item()

    diou = 1 - 1 / 4 + 8 / 128
    assert loss("giou") == pytest.approx(1 - 1 / 4, abs=1e-5)
    assert loss("diou") == pytest.approx(diou, abs=1e-5)
    assert loss("ciou") == pytest.approx(diou, abs=1e-5)  # of the same aspect ratio


def test_unknown_losses_are_refused():
    message = 'box_reg_loss_type must be one of smooth_l1, giou, diou, ciou, got "iou"'
    with pytest.raises(ValueError, match=message):
        build(box_reg_loss_type="iou")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_score_type": "root"}, 'test_score_type must be one of sqrt, product, got "root"'),
        ({"test_rank_by": "x"}, 'test_rank_by must be one of score, class_score, got "x"'),
    ],
)
def test_unknown_scores_and_ranks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("rank_by", ["score", "class_score"])
def test_the_model_ranks_and_scores_as_it_is_told(rank_by):
    """With one candidate per level, the best of its kind."""
    options = {"test_topk_candidates": 1, "test_score_thresh": 0.0, "test_nms_thresh": 1.0}
    model = build(test_score_type="product", test_rank_by=rank_by, **options).eval()
    image = torch.randint(0, 255, (3, 64, 96)).float()
    with torch.no_grad():
        for parameter in model.head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        (output,) = model([{"image": image}])
        features = model.backbone(model.preprocess_image([{"image": image}]).tensor)
        logits, _, centerness = model.as_predictions(model.head(list(features.values())))
    expected = []
    for level_logits, level_centerness in zip(logits, centerness):
        class_scores = level_logits[0].sigmoid()
        scores = class_scores * level_centerness[0].sigmoid()[:, None]
        best = (scores if rank_by == "score" else class_scores).argmax()
        expected.append(scores.flatten()[best])
    expected = torch.stack(expected).sort(descending=True).values
    torch.testing.assert_close(output["instances"].scores, expected)


# --------------------------------------------------------------------------------- the head


def test_without_centerness_the_score_is_that_of_the_class():
    model = build(head=head(with_centerness=False), test_score_thresh=0.3).eval()
    assert not any("ctrness" in name for name in model.state_dict())
    with torch.no_grad():
        _, (logits, _) = predictions_of(model, [image()])
        detections = model([image()])[0]["instances"]
    scores = [1 / (1 + math.exp(-x)) for row in logits[0] for x in row]
    assert detections.scores[0].item() == pytest.approx(max(scores), rel=1e-5)
    assert len(detections) > 1
    assert detections.scores.min() > 0.3


def test_without_scales_all_levels_share_the_box_predictor():
    plain, scaled = head(with_scales=False), head()
    assert not any(name.startswith("scales") for name in plain.state_dict())
    plain.load_state_dict({k: v for k, v in scaled.state_dict().items() if "scales" not in k})
    features = [torch.randn(1, CHANNELS, 4, 4)] * 2
    nn.init.constant_(scaled.scales[1].scale, 3.0)
    _, of_plain, _ = plain(features)
    _, of_scaled, _ = scaled(features)
    torch.testing.assert_close(of_plain[1], of_plain[0])
    torch.testing.assert_close(of_scaled[1], 3 * of_plain[1])


def test_the_bias_of_the_box_predictor():
    assert (head(bbox_pred_bias=4.0).bbox_pred.bias == 4).all()
    assert (head().bbox_pred.bias == 0).all()


def test_a_head_needs_as_many_levels_as_it_was_built_for():
    with pytest.raises(ValueError, match="built for 2 levels, got 1"):
        head(with_scales=False)([torch.randn(1, CHANNELS, 4, 4)])


def test_points_need_one_anchor_per_location():
    with pytest.raises(ValueError, match=r"PointDistances .* gives \[3, 3\] on its levels"):
        build(num_anchors=3, box2box_transform=PointDistances())


def test_strides_of_the_rule_are_those_of_the_features():
    with pytest.raises(ValueError, match=r"matcher was built for strides=\(8, 32\), but .*16\)"):
        build(matcher=ScaleRangeMatcher(strides=(8, 32)))
