"""A batch gives what each image gives alone, also without a shape that depends on a value."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from atss_d2.modeling import nms as nms_module
from atss_d2.modeling.nms import kept_by_joint_nms, kept_by_nms
from atss_d2.modeling.nouns import Predictions
from atss_d2.modeling.postprocess import (
    best_of_batch,
    clip_boxes,
    detections_of_batch,
    postprocess,
    pre_nms_detections,
)
from atss_d2.modeling.pre_nms import NO_SCORE, RANKINGS, SCORE_TYPES, select_fixed_number
from atss_d2.modeling.scripting import without_jit_warnings
from benchmarks.pretend_gpu import count, pretend
from tests.detector import random_boxes


@st.composite
def scenes(draw):
    """Predictions for some images on some levels, and options."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_images = draw(st.integers(1, 4))
    num_classes = draw(st.sampled_from([1, 2, 7]))
    sizes = draw(st.lists(st.integers(1, 25), min_size=1, max_size=3))

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    corners = [60 * torch.rand(n, 2, generator=generator) for n in sizes]
    anchors = [torch.cat((xy, xy + 20), dim=1) for xy in corners]
    # Logits of level 2 and on are low: images and levels without any candidate occur.
    logits = [2 * normal(num_images, n, num_classes) - 4 * i for i, n in enumerate(sizes)]
    if draw(st.booleans()):  # a crowded image between empty ones
        logits = [x - 6 * torch.arange(num_images).sub(1).abs()[:, None, None] for x in logits]
    deltas = [2 * normal(num_images, n, 4) for n in sizes]
    centerness = None
    if draw(st.booleans()):
        centerness = [normal(num_images, n) for n in sizes]
    options = {
        "score_thresh": draw(st.sampled_from([0.05, 0.5, 0.0, 0.97, 1.0])),
        "topk_candidates": draw(st.sampled_from([1, 7, 200])),
        "score_type": draw(st.sampled_from(SCORE_TYPES)),
        "rank_by": draw(st.sampled_from(RANKINGS)),
        "thresh_on": draw(st.sampled_from(RANKINGS)),
    }
    nms_options = {
        "nms_thresh": draw(st.sampled_from([0.0, 0.3, 0.6, 1.0])),
        "max_detections": draw(st.sampled_from([1, 10, 400])),
        "score_voting": draw(st.sampled_from([None, 0.025])),
    }
    size = st.sampled_from([(40, 60), (80, 20), (200, 200)])
    image_sizes = draw(st.lists(size, min_size=num_images, max_size=num_images))
    return Predictions(logits, deltas, centerness), anchors, image_sizes, options, nms_options


@settings(max_examples=150, derandomize=True)
@given(scenes())
def test_detections_are_those_of_each_image_alone(scene):
    """To the last bit in eager mode; the sigmoids of exported files may be rounded differently."""
    predictions, anchors, image_sizes, options, nms_options = scene
    options["box2box_transform"] = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    found = postprocess(predictions, anchors, image_sizes, **options, **nms_options)
    sizes = torch.tensor(image_sizes, dtype=torch.float32)[:, :, None, None].unbind(dim=1)
    candidates = pre_nms_detections(predictions, anchors, sizes, **options, fixed_shapes=True)
    num_places, num_images = len(anchors) * options["topk_candidates"], len(image_sizes)
    assert [x.shape[:2] for x in candidates] == [(num_images, num_places)] * 3
    exported = detections_of_batch(*candidates, **nms_options)
    assert [x.shape[:2] for x in exported] == [(num_images, nms_options["max_detections"])] * 3
    for i in range(num_images):
        alone = Predictions(*(part and [x[i : i + 1] for x in part] for part in predictions))
        (expected,) = postprocess(alone, anchors, image_sizes[i : i + 1], **options, **nms_options)
        n = len(expected[1])
        assert (exported[1][i, n:] == NO_SCORE).all()
        torch.testing.assert_close(found[i], expected, rtol=0, atol=0)
        torch.testing.assert_close(tuple(x[i, :n] for x in exported), expected)


def test_on_a_gpu_an_image_more_costs_little_more_than_its_nms():
    """Selection and decoding are of the batch; of each image there are some 15 launches."""

    def ask(num_images):
        maps = [torch.randn(num_images, 40, width) for width in (3, 4)]
        logits, deltas, anchors = (pretend(x) for x in (*maps, random_boxes(40)))
        options = {"box2box_transform": Box2BoxTransform((10.0, 10.0, 5.0, 5.0))}
        predictions, sizes = Predictions([logits], [deltas]), [(64, 64 + i) for i in range(8)]
        launches, waits = count(
            lambda: postprocess(predictions, [anchors], sizes[:num_images], **options)
        )
        return launches.total(), waits.total()

    (few_launches, few_waits), (launches, waits) = ask(2), ask(8)
    assert few_launches > 2 * 10
    assert launches - few_launches < 6 * 20
    assert (few_waits, waits) == (2, 8)  # not counted: that of torchvision's NMS


def test_a_level_smaller_than_the_places_is_filled():
    logits = torch.tensor([[[3.0, -9], [-9, 2]], [[-9, -9], [-9, -9]]])  # two images, two anchors
    scores, anchor_idxs, classes = select_fixed_number(logits, None, 0.05, 6, fill=True)
    assert scores.shape == anchor_idxs.shape == classes.shape == (2, 6)
    torch.testing.assert_close(scores[0, :2], torch.tensor([3.0, 2]).sigmoid())
    assert (scores[0, 2:] == NO_SCORE).all()
    assert (scores[1] == NO_SCORE).all()
    assert anchor_idxs[0, :2].tolist() == [0, 1]
    assert classes[0, :2].tolist() == [0, 1]
    assert (anchor_idxs < 2).all()  # places in the padding point to an anchor that is there


def test_the_best_of_fewer_than_asked_for():
    boxes = torch.arange(8.0).reshape(1, 2, 4)
    boxes, scores, classes = best_of_batch(
        boxes, torch.tensor([[0.2, 0.7]]), torch.tensor([[4, 5]]), 3
    )
    assert scores.tolist() == [[pytest.approx(0.7), pytest.approx(0.2), NO_SCORE]]
    assert boxes[0, :2].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert classes[0, :2].tolist() == [5, 4]


def test_a_nan_in_one_image_changes_no_other():
    boxes = random_boxes(30).expand(2, -1, -1).clone()
    args = {"nms_thresh": 0.3, "max_detections": 30}
    scores, classes = torch.rand(30).expand(2, -1).clone(), torch.zeros(2, 30, dtype=torch.int64)
    expected = detections_of_batch(boxes, scores, classes, **args)
    scores[0, 3] = float("nan")
    found = detections_of_batch(boxes, scores, classes, **args)
    torch.testing.assert_close([x[1] for x in found], [x[1] for x in expected])
    assert not found[1].isnan().any()


# -------------------------------------------------------------------------------------------- NMS


@pytest.mark.parametrize(("num_images", "num_classes"), [(1, 1), (3, 1), (1, 80), (8, 80)])
@pytest.mark.parametrize("iou_thresh", [0.0, 0.5, 1.0])
def test_each_pair_of_image_and_class_is_suppressed_alone(num_images, num_classes, iou_thresh):
    boxes = 5 * torch.stack([random_boxes(200) for _ in range(num_images)])
    boxes[:, :2] = torch.tensor([0.0, 0, 700, 500])  # some that fill the image
    boxes[:, 2] = torch.tensor([5.0, 5, 5, 5])  # and one without an area
    scores = torch.rand(num_images, 200)
    classes = torch.randint(0, num_classes, (num_images, 200))
    is_box = torch.rand(num_images, 200) > 0.2
    kept = kept_by_nms(boxes, scores, classes, is_box, iou_thresh)
    joint = kept_by_joint_nms(boxes, scores, classes, is_box, iou_thresh)
    assert torch.equal(joint, kept)
    expected = torch.zeros_like(kept)
    for i in range(num_images):
        for k in range(num_classes):
            (rows,) = (is_box[i] & (classes[i] == k)).nonzero(as_tuple=True)
            expected[i, rows[nms(boxes[i, rows], scores[i, rows], iou_thresh)]] = True
    assert torch.equal(kept, expected)


def test_far_cells_keep_the_precision_of_boxes():
    """By one shift per class, in a row, the last class would lie where float32 has steps of 1/16.

    All pairs of boxes have an IoU of 0.5 +- 0.00015.
    """
    num_classes = 400
    x = torch.arange(num_classes) / num_classes * 1000
    first = torch.stack((x, x, x + 100, x + 100), dim=1)
    second = first.clone()
    second[:, 2] -= torch.where(torch.arange(num_classes) % 2 == 0, 49.985, 50.015)
    boxes = torch.stack((first, second), dim=1).reshape(1, -1, 4)
    scores = torch.tensor([0.9, 0.8]).repeat(num_classes)[None]
    classes = torch.arange(num_classes).repeat_interleave(2)[None]
    kept = kept_by_nms(boxes, scores, classes, scores > 0, 0.5).reshape(-1, 2)
    assert kept[:, 0].all()
    assert kept[:, 1].tolist() == [False, True] * (num_classes // 2)


@pytest.mark.parametrize("num_images", [1, 3, 8])
def test_each_image_has_an_nms_of_its_own(num_images, monkeypatch):
    """One for all would compare each box with those of all other images."""
    sizes = []
    monkeypatch.setattr(
        nms_module, "_kept_in_image", lambda b, s, t: sizes.append(len(b)) or torch.ones_like(s) > 0
    )
    boxes, classes = torch.zeros(num_images, 20, 4), torch.zeros(num_images, 20, dtype=torch.int64)
    kept_by_nms(boxes, torch.rand(num_images, 20), classes, classes == 0, 0.5)
    assert sizes == [22] * num_images  # and two that always stay


def test_a_trace_takes_any_number_of_images():
    def inputs(num_images):
        boxes = torch.stack([random_boxes(40) for _ in range(num_images)])
        return boxes, torch.rand(num_images, 40), torch.randint(0, 3, (num_images, 40))

    def kept(boxes, scores, classes):
        return kept_by_nms(boxes, scores, classes, scores > 0.2, 0.5)

    with without_jit_warnings():
        traced = torch.jit.trace(kept, inputs(1), check_trace=False)
    for num_images in (1, 2, 5):
        example = inputs(num_images)
        assert torch.equal(traced(*example), kept(*example))


@pytest.mark.parametrize("num_places", [1, 5])
def test_no_candidate_at_all(num_places):
    boxes = torch.rand(2, num_places, 4)
    nothing = torch.zeros(2, num_places, dtype=torch.bool)
    zeros = torch.zeros(2, num_places)
    for kept in (kept_by_nms, kept_by_joint_nms):
        assert not kept(boxes, zeros, zeros.long(), nothing, 0.5).any()


def test_clipping_a_batch_is_clipping_each_image():
    boxes, sizes = 100 * torch.randn(3, 7, 4), [(50, 60), (20, 90), (150, 7)]
    tensors = torch.tensor(sizes)[:, :, None, None].unbind(dim=1)
    for image, size, clipped in zip(boxes, sizes, clip_boxes(boxes, tensors)):
        assert torch.equal(clip_boxes(image, size), clipped)
