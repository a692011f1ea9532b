"""Voting: against loops written from the method, and the results of the authors' release."""

import pytest
import torch
from detectron2.layers import batched_nms
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling import box_voting
from atss_d2.modeling.box_voting import soft_vote, vote
from tests import reference, reference_voting
from tests.allocations import Allocations

published = reference.published()

MERGES = [vote, soft_vote]
quick = settings(max_examples=60, derandomize=True)


def as_list(boxes, scores, classes):
    """Detections in an order that does not depend on how equal scores are sorted."""
    rows = zip(scores.tolist(), classes.tolist(), boxes.tolist(), strict=True)
    return sorted(rows, key=lambda row: (-row[0], row[1], [round(x, 2) for x in row[2]]))


def assert_same(found, expected, atol=1e-4):
    assert found[1].tolist() == sorted(found[1].tolist(), reverse=True)
    found = as_list(*found)
    assert len(found) == len(expected)
    for i, dtype in enumerate((torch.float64, torch.int64, torch.float64)):
        columns = [
            torch.tensor([row[i] for row in rows], dtype=dtype) for rows in (found, expected)
        ]
        torch.testing.assert_close(*columns, rtol=0, atol=atol)


def loop(boxes, scores, classes, **options):
    rows = zip(scores.tolist(), classes.tolist(), boxes.tolist(), strict=True)
    merged = reference_voting.vote(list(rows), **options)
    return sorted(merged, key=lambda row: (-row[0], row[1], [round(x, 2) for x in row[2]]))


def detections(*rows):
    """Boxes, scores and classes of rows (score, class, box)."""
    boxes = torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([row[0] for row in rows], dtype=torch.float32)
    return boxes, scores, torch.tensor([row[1] for row in rows], dtype=torch.int64)


# --------------------------------------------------------------------------- against others


@pytest.mark.parametrize(("merge", "name"), [(vote, "vote"), (soft_vote, "softvote")])
def test_gives_the_results_of_the_authors(merge, name):
    boxes = torch.from_numpy(published["authors.vote.in_boxes"])
    scores = torch.from_numpy(published["authors.vote.in_scores"])
    found = merge(boxes, scores, torch.zeros(len(boxes), dtype=torch.int64))
    scores = torch.from_numpy(published[f"authors.{name}.scores"])
    boxes = torch.from_numpy(published[f"authors.{name}.boxes"])
    order = scores.argsort(descending=True)
    assert len(scores.unique()) == len(scores)  # one order only
    torch.testing.assert_close(found[0], boxes[order], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], scores[order], rtol=0, atol=1e-7)


@st.composite
def scenes(draw):
    """Boxes of whole numbers that overlap a lot; some equal, some of no area; scores with ties."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num = draw(st.integers(0, 40))
    spread = draw(st.sampled_from([1, 4, 12]))
    corners = torch.randint(-spread, spread, (num, 2), generator=generator)
    sides = torch.randint(0, 9, (num, 2), generator=generator)
    boxes = torch.cat((corners, corners + sides), dim=1).float()
    num_scores = draw(st.sampled_from([3, 10_000]))
    scores = torch.randint(0, num_scores, (num,), generator=generator) / num_scores
    num_classes = draw(st.sampled_from([1, 2, 50]))
    classes = torch.randint(0, num_classes, (num,), generator=generator)
    return boxes, scores, classes


@quick
@given(scene=scenes(), iou_thresh=st.sampled_from([0.25, 0.5, 0.66, 1.0]))
def test_vote_is_the_loop(scene, iou_thresh):
    assert_same(vote(*scene, iou_thresh=iou_thresh), loop(*scene, iou_thresh=iou_thresh))


@quick
@given(
    scene=scenes(),
    iou_thresh=st.sampled_from([0.25, 0.5, 0.66]),
    score_thresh=st.sampled_from([0.0, 0.05, 0.25]),
)
def test_soft_vote_is_the_loop(scene, iou_thresh, score_thresh):
    found = soft_vote(*scene, iou_thresh=iou_thresh, score_thresh=score_thresh)
    expected = loop(*scene, iou_thresh=iou_thresh, soft_score_thresh=score_thresh)
    assert_same(found, expected)


def crowded_scene(num, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(num, 4, generator=generator) * 60
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.rand(num, generator=generator).mul(8).round() / 8  # many are equal
    return boxes, scores, torch.randint(num_classes, (num,), generator=generator)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("block", [1, 3, 17, 64])
def test_blocks_change_no_bit(merge, block, monkeypatch):
    scene = crowded_scene(150, 4, seed=block)
    monkeypatch.setattr(box_voting, "_BLOCK", 1000)  # all compared with all
    expected = merge(*scene, iou_thresh=0.5)
    monkeypatch.setattr(box_voting, "_BLOCK", block)
    for found, wanted in zip(merge(*scene, iou_thresh=0.5), expected):
        assert torch.equal(found, wanted)
    assert len(vote(*scene, iou_thresh=0.5)[0]) < 150  # some were merged


def test_memory_does_not_grow_with_the_square_of_the_detections():
    peaks = []
    for num in (2000, 8000):
        with Allocations() as allocations:
            vote(*crowded_scene(num, 80))
        peaks.append(allocations.peak_bytes)
    assert peaks[1] < 2 * peaks[0]
    assert peaks[1] < 20e6  # the IoUs of all pairs alone take 256 MB


def test_leaders_are_what_nms_keeps():
    torch.manual_seed(0)
    corners = 300 * torch.rand(800, 2)
    boxes = torch.cat((corners, corners + 20 + 60 * torch.rand(800, 2)), dim=1)
    scores, classes = torch.rand(800), torch.randint(0, 3, (800,))
    found = vote(boxes, scores, classes, iou_thresh=0.4)
    keep = batched_nms(boxes, scores, classes, 0.4)
    assert 50 < len(keep) < 700
    torch.testing.assert_close(found[1], scores[keep])
    torch.testing.assert_close(found[2], classes[keep])


# --------------------------------------------------------------------------- by hand


def test_a_group_by_hand():
    scene = detections(
        (0.6, 0, [0, 0, 10, 10]),
        (0.3, 0, [0, 0, 10, 8]),  # IoU 0.8 with the first
        (0.1, 0, [0, 0, 10, 5]),  # 0.5 with the first, 0.625 with the second
        (0.9, 0, [50, 50, 60, 60]),
    )
    boxes, scores, classes = vote(*scene, iou_thresh=0.66)
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.6, 0.1]))
    assert classes.tolist() == [0, 0, 0]
    height = (0.6 * 10 + 0.3 * 8) / 0.9
    expected = [[50.0, 50, 60, 60], [0, 0, 10, height], [0, 0, 10, 5]]
    torch.testing.assert_close(boxes, torch.tensor(expected))

    boxes, scores, _ = soft_vote(*scene, iou_thresh=0.66, score_thresh=0.05)
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.6, 0.1, 0.3 * 0.2]))
    torch.testing.assert_close(boxes, torch.tensor([*expected, [0, 0, 10, 8]]))
    assert len(soft_vote(*scene, iou_thresh=0.66, score_thresh=0.061)[0]) == 3


def test_a_member_belongs_to_the_best_leader_that_it_reaches_not_to_the_nearest():
    scene = detections(
        (0.9, 0, [0, 0, 10, 10]),
        (0.8, 0, [4, 0, 14, 10]),  # IoU 6 / 14 with the first
        (0.7, 0, [3, 0, 13, 10]),  # 7 / 13 with the first, 9 / 11 with the second
    )
    boxes, scores, _ = vote(*scene, iou_thresh=0.5)
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.8]))
    shift = 0.7 * 3 / 1.6
    expected = [[shift, 0, 10 + shift, 10], [4.0, 0, 14, 10]]
    torch.testing.assert_close(boxes, torch.tensor(expected))


def test_a_member_takes_no_members():
    # 0 takes 1, which would have taken 2, which therefore takes 3, ...: every other box leads.
    rows = [(1 - i / 100, 0, [2 * i, 0, 2 * i + 10, 10]) for i in range(50)]  # neighbors: 8 / 12
    boxes, scores, _ = vote(*detections(*rows), iou_thresh=0.6)
    torch.testing.assert_close(scores, torch.tensor([row[0] for row in rows[::2]]))
    assert boxes[:, 0].gt(torch.arange(0, 100, 4)).all()  # drawn to the right by a member each


def test_a_group_holds_boxes_at_the_threshold():
    scene = detections((0.9, 0, [0, 0, 10, 10]), (0.5, 0, [0, 0, 10, 5]))
    assert len(vote(*scene, iou_thresh=0.5)[0]) == 1
    assert len(vote(*scene, iou_thresh=0.5001)[0]) == 2


def test_classes_do_not_mix():
    box = [0, 0, 10, 10]
    scene = detections(*((0.5 + k / 1000, k, box) for k in range(200)), (0.1, 7, [0, 0, 10, 9]))
    boxes, scores, classes = vote(*scene)
    assert classes.tolist() == list(reversed(range(200)))
    assert len(scores) == 200
    moved = boxes[:, 3] < 10
    assert classes[moved].tolist() == [7]


def test_of_equal_scores_the_first_leads():
    scene = detections((0.5, 0, [0, 0, 10, 10]), (0.5, 0, [3, 0, 13, 10]), (0.5, 0, [6, 0, 16, 10]))
    boxes, _, _ = vote(*scene, iou_thresh=0.5)  # neighbors: 7 / 13; first and last: 4 / 16
    torch.testing.assert_close(boxes, torch.tensor([[1.5, 0, 11.5, 10], [6, 0, 16, 10]]))


def test_scores_of_zero_weigh_the_same():
    boxes, scores, _ = vote(*detections((0, 0, [0, 0, 10, 10]), (0, 0, [0, 0, 10, 8])))
    assert boxes.tolist() == [[0, 0, 10, 9]]
    assert scores.tolist() == [0]


@pytest.mark.parametrize("merge", MERGES)
def test_one_alone_stays_as_it_is(merge):
    torch.manual_seed(0)
    corners = 1000 * torch.rand(30, 2)
    boxes = torch.cat((corners, corners + 3), dim=1)
    scores = torch.rand(30)
    found = merge(boxes, scores, torch.arange(30))
    order = scores.argsort(descending=True)
    torch.testing.assert_close(found[0], boxes[order], rtol=0, atol=0)
    torch.testing.assert_close(found[1], scores[order], rtol=0, atol=0)
    assert found[2].tolist() == order.tolist()


@pytest.mark.parametrize("merge", MERGES)
def test_no_detections(merge):
    boxes, scores, classes = merge(*detections())
    assert boxes.shape == (0, 4)
    assert scores.shape == classes.shape == (0,)
    assert classes.dtype == torch.int64


@pytest.mark.parametrize("merge", MERGES)
def test_boxes_of_no_area_stay_alone(merge):
    scene = detections((0.9, 0, [5, 5, 5, 9]), (0.8, 0, [5, 5, 5, 9]), (0.7, 0, [0, 0, 10, 10]))
    boxes, scores, _ = merge(*scene, iou_thresh=0.1)
    torch.testing.assert_close(boxes, scene[0])
    torch.testing.assert_close(scores, scene[1])


@pytest.mark.parametrize("merge", MERGES)
def test_half_precision_is_widened(merge):
    box = torch.tensor([[1000.0, 1000, 1100, 1100]])
    boxes = torch.cat((box, box + 1, box + 2)).half()
    scores = torch.tensor([0.5, 0.25, 0.25]).half()
    boxes, scores, _ = merge(boxes, scores, torch.zeros(3, dtype=torch.int64))
    assert boxes.dtype == scores.dtype == torch.float32
    # Half precision would have rounded the mean to a whole number.
    torch.testing.assert_close(boxes[:1], box + 0.75)


@pytest.mark.parametrize("merge", MERGES)
def test_under_autocast(merge):
    boxes = torch.from_numpy(published["authors.vote.in_boxes"])
    scores = torch.from_numpy(published["authors.vote.in_scores"])
    scene = (boxes, scores, torch.zeros(len(boxes), dtype=torch.int64))
    expected = merge(*scene)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = merge(*scene)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
