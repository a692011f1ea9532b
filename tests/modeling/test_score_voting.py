"""Score voting: published boxes and detections, loops, and boxes that get no vote."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.postprocess import detections_of_batch, postprocess, pre_nms_detections
from atss_d2.modeling.pre_nms import NO_SCORE
from atss_d2.modeling.score_voting import vote_by_scores
from tests import paa_loops, paa_scene
from tests.detector import build, image, random_boxes
from tests.paa_scene import SIZES, tensor


def test_boxes_are_those_of_mmdetection():
    scores = tensor("voting.candidate_scores")
    rows, classes = (scores > 0.05).nonzero().unbind(dim=1)
    voters = tensor("voting.candidate_boxes")[rows], scores[rows, classes], classes
    found = vote_by_scores(tensor("voting.in_boxes"), tensor("voting.in_classes"), *voters)
    # Theirs are sorted by class.
    order, their_order = tensor("voting.in_scores").argsort(), tensor("voting.scores").argsort()
    torch.testing.assert_close(found[order], tensor("voting.boxes")[their_order], rtol=0, atol=1e-3)


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize(
    ("prefix", "score_voting", "i"),
    [
        ("paa", 0.025, 0),
        ("paa", 0.025, 1),
        ("paa.novote", None, 0),
        ("paa.novote", None, 1),
        ("paa.novote.own_pad", None, 1),
    ],
)
def test_detections_are_those_of_mmdetection(prefix, score_voting, i, fixed_shapes):
    """mmdetection takes the 1,000 best anchors of 1,008: none of the other 8 has a candidate.

    In an image smaller than the maps, some of its detections have no area; ours all have one.
    """
    sizes = [SIZES[0], (175, 140)] if "own_pad" in prefix else SIZES
    options = {"box2box_transform": paa_scene.CODER, "thresh_on": "score"}
    inputs = paa_scene.predictions(), paa_scene.anchors()
    if fixed_shapes:
        size = torch.tensor(sizes).float()[..., None, None].unbind(dim=1)
        candidates = pre_nms_detections(*inputs, size, **options, fixed_shapes=True)
        found = [x[i] for x in detections_of_batch(*candidates, score_voting=score_voting)]
    else:
        found = postprocess(*inputs, sizes, score_voting=score_voting, **options)[i]
    boxes, scores, classes = (
        tensor(f"{prefix}.det_{name}_{i}") for name in ("boxes", "scores", "classes")
    )
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    assert has_area.all() == ("own_pad" not in prefix)
    order = scores.argsort(descending=True)  # theirs are sorted by class
    order = order[has_area[order]]
    found = [x[: len(order)] for x in found]
    torch.testing.assert_close(found[0], boxes[order], rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1], scores[order], rtol=0, atol=1e-6)
    assert torch.equal(found[2], classes[order])


@settings(max_examples=40, derandomize=True)
@given(seed=st.integers(0, 2**31), num=st.integers(1, 12), sigma=st.sampled_from([0.025, 1.0]))
def test_equals_the_loops(seed, num, sigma):
    torch.manual_seed(seed)
    boxes, scores, classes = random_boxes(num), torch.rand(num), torch.randint(0, 2, (num,))
    kept = slice(0, num, 2)
    voters = list(zip(boxes.tolist(), scores.tolist(), classes.tolist()))
    found = vote_by_scores(boxes[kept], classes[kept], boxes, scores, classes, sigma=sigma)
    expected = [paa_loops.vote(box, k, voters, sigma) for box, _, k in voters[kept]]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_by_hand():
    """Of 0.8 x 1 for itself and 0.4 x exp(-0.5^2 / 0.25) for the box of half its width."""
    boxes = torch.tensor([[0.0, 0, 20, 10], [0, 0, 10, 10], [0, 0, 10, 10], [90, 0, 99, 10]])
    scores, classes = torch.tensor([0.8, 0.4, 0.9, 0.9]), torch.tensor([0, 0, 1, 0])
    found = vote_by_scores(boxes[:1], classes[:1], boxes, scores, classes, sigma=0.25)
    weight = 0.4 * torch.tensor(-1.0).exp().item()
    expected = 20 - 10 * weight / (0.8 + weight)
    torch.testing.assert_close(found, torch.tensor([[0, 0, expected, 10]]))
    # IoU 0.01 is not above 0.01.
    sliver = torch.tensor([[0.0, 0, 100, 10], [0, 0, 1, 10]])
    found = vote_by_scores(sliver, classes[:2], sliver, scores[:2], classes[:2], sigma=100.0)
    assert torch.equal(found, sliver)


def test_a_box_without_a_vote_stays():
    """One without area, for which mmdetection divides by 0, and places without a detection."""
    boxes = torch.tensor([[5.0, 5, 5, 9], [0, 0, 9, 9], [30, 30, 39, 39]])
    scores, classes = torch.tensor([0.9, NO_SCORE, 0.5]), torch.zeros(3, dtype=torch.int64)
    found = vote_by_scores(boxes, classes, boxes, scores, classes)
    assert torch.equal(found, boxes)
    assert torch.equal(vote_by_scores(boxes, classes, boxes[:0], scores[:0], classes[:0]), boxes)
    assert vote_by_scores(boxes[:0], classes[:0], boxes, scores, classes).shape == (0, 4)
    half = vote_by_scores(boxes.half(), classes, boxes.half(), scores.half(), classes)
    assert half.dtype == torch.float32


def test_a_batch_is_each_image():
    boxes = torch.stack([random_boxes(20) for _ in range(3)])
    scores, classes = torch.rand(3, 20), torch.randint(0, 2, (3, 20))
    found = vote_by_scores(boxes[:, :5], classes[:, :5], boxes, scores, classes)
    for i in range(3):
        alone = vote_by_scores(boxes[i, :5], classes[i, :5], boxes[i], scores[i], classes[i])
        torch.testing.assert_close(found[i], alone)


def test_the_detector_votes():
    """Same scores and classes, other boxes; without, the result is that of before."""
    inputs = [image(size=(64, 96))]
    results = {}
    for sigma in (None, 0.5):
        model = build(score_voting=sigma, test_nms_thresh=0.3).eval()
        with torch.no_grad():
            results[sigma] = model(inputs)[0]["instances"]
    before, after = results.values()
    assert len(before) > 10
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.pred_classes, after.pred_classes)
    moved = (before.pred_boxes.tensor - after.pred_boxes.tensor).abs()
    assert moved.max() > 0.01
    for value in (0.0, -1.0):
        with pytest.raises(ValueError, match="score_voting must be None or > 0"):
            build(score_voting=value)
    with pytest.raises(ValueError, match="test_thresh_on must be one of score, class_score"):
        build(test_thresh_on="both")
