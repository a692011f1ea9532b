"""Rules, coders, losses and predictors are interchangeable: the experiments of Tables 1 to 3."""

import itertools

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from atss_d2.modeling import (
    ATSSMatcher,
    CenterSamplingMatcher,
    IoUMatcher,
    ScaleRangeMatcher,
    TopKMatcher,
)
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.criterion.box_losses import BOX_REG_LOSS_TYPES, box_reg_loss
from tests.detector import BOXES, build, image, toy_head
from tests.loss_loops import losses_by_loops, match, predictions_of

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


# -------------------------------------------------------------------------- any x any x any


# Every coder with every loss; of the rules each one at least once.
COMBINATIONS = [
    (coder, loss, matcher)
    for (coder, loss), matcher in zip(
        itertools.product(CODERS, BOX_REG_LOSS_TYPES), itertools.cycle(MATCHERS)
    )
]


@pytest.mark.parametrize(("coder", "loss", "matcher"), COMBINATIONS)
def test_any_rule_coder_and_loss_train_and_detect(coder, loss, matcher):
    model = build(
        matcher=MATCHERS[matcher],
        box2box_transform=CODERS[coder],
        box_reg_loss_type=loss,
        head=toy_head(bbox_pred_bias=2.0 if coder == "point" else 0.0),
    )
    nn.init.normal_(model.head.bbox_pred.weight, std=0.01)  # as training starts
    batch = [image(BOXES), image(seed=1)]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    values = []
    for _ in range(15):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all(), name
        optimizer.step()
        values.append((losses["loss_cls"].item(), losses["loss_box_reg"].item()))
    assert values[-1][0] < 0.9 * values[0][0]
    assert values[-1][1] < 0.9 * values[0][1]
    with torch.no_grad():
        for x in model.eval()(batch):
            assert len(x["instances"]) > 0
            assert x["instances"].pred_boxes.tensor.isfinite().all()


# ------------------------------------------------------------------ each switch by the loops


@pytest.mark.parametrize(
    ("centerness", "weighted", "loss"),
    list(itertools.product([True, False], [True, False], ["giou", "smooth_l1"])),
)
def test_losses_equal_the_loops(centerness, weighted, loss):
    model = build(
        head=toy_head(with_centerness=centerness),
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
    # Of the third and the fourth image none is positive: no boxes, a box between the centers.
    batch = [image(BOXES), image(BOXES[1:2], seed=1), image(seed=2), image([[5.0, 5, 7, 7]])]
    losses = {name: value.item() for name, value in model(batch).items()}
    expected = losses_by_loops(model, batch, weighted=weighted, **options)
    assert losses == pytest.approx(expected, rel=1e-4)
    plain = losses_by_loops(model, batch, weighted=weighted)
    assert abs(losses["loss_centerness"] / plain["loss_centerness"] - 1) > 0.005


def test_images_without_positives_count_in_the_floor():
    """The same image, alone and beside three empty ones: P and P + 3 to divide by."""
    batch = [image(BOXES), *[image(seed=i) for i in range(1, 4)]]
    floored, plain = build(floor_per_image=True)(batch), build()(batch)
    matched = match(build(), predictions_of(build(), batch)[0], BOXES)
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
        logits, _, centerness, _ = model.as_predictions(model.head(list(features.values())))
    expected = []
    for level_logits, level_centerness in zip(logits, centerness):
        class_scores = level_logits[0].sigmoid()
        scores = class_scores * level_centerness[0].sigmoid()[:, None]
        best = (scores if rank_by == "score" else class_scores).argmax()
        expected.append(scores.flatten()[best])
    expected = torch.stack(expected).sort(descending=True).values
    torch.testing.assert_close(output["instances"].scores, expected)


# --------------------------------------------------------------------------------- the head
