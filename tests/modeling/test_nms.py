"""NMS per class gives the same by every route."""

import itertools

import pytest
import torch
from detectron2.layers import batched_nms as detectron2_batched_nms
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from atss_d2.modeling import nms as nms_module
from atss_d2.modeling.nms import batched_nms, kept_by_nms
from tests import reference


@st.composite
def candidates(draw):
    """Boxes on an integer grid, so that IoUs of exactly the threshold and equal scores occur."""
    count = draw(st.integers(0, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    corners = torch.randint(0, 12, (count, 2), generator=generator)
    sides = torch.randint(0, 8, (count, 2), generator=generator)
    boxes = torch.cat((corners, corners + sides), dim=1).float()
    num_scores = draw(st.sampled_from([3, 1000]))
    scores = torch.randint(0, num_scores, (count,), generator=generator) / num_scores
    classes = torch.randint(0, draw(st.sampled_from([1, 2, 7])), (count,), generator=generator)
    return boxes, scores, classes


def nms_by_loops(boxes, scores, classes, iou_thresh):
    """Greedy suppression, one pair at a time."""
    boxes = [reference.as_float32(box) for box in boxes.tolist()]
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i))
    keep = []
    for i in order:
        rivals = [j for j in keep if classes[j] == classes[i]]
        if all(float(reference.box_iou(boxes[i], boxes[j])) <= iou_thresh for j in rivals):
            keep.append(i)
    return keep


ROUTES = ["all at once", 1, 10, 400]  # or the least size of a group of classes


def take(route, patch):
    if route == "all at once":
        patch.setattr(nms_module, "_CPU_MOST_AT_ONCE", 10**9)
    else:
        patch.setattr(nms_module, "_CPU_MOST_AT_ONCE", 0)
        patch.setattr(nms_module, "_GROUP_SIZE", route)


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    take(request.param, monkeypatch)


@pytest.mark.parametrize("way", ROUTES)
@settings(max_examples=100, derandomize=True)
@given(scene=candidates(), iou_thresh=st.sampled_from([0.0, 1 / 3, 0.5, 0.6]))
def test_equals_the_loops(way, scene, iou_thresh):
    boxes, scores, classes = scene
    with pytest.MonkeyPatch.context() as patch:
        take(way, patch)
        keep = batched_nms(boxes, scores, classes, iou_thresh)
    assert keep.tolist() == nms_by_loops(boxes, scores, classes, iou_thresh)


@pytest.mark.parametrize("count", [0, 1, 300, 3000])
def test_equals_detectron2s(count, route):
    corners = 500 * torch.rand(count, 2)
    boxes = torch.cat((corners, corners + 100 * torch.rand(count, 2)), dim=1)
    scores, classes = torch.rand(count), torch.randint(0, 80, (count,))
    torch.testing.assert_close(
        batched_nms(boxes, scores, classes, 0.5),
        detectron2_batched_nms(boxes, scores, classes, 0.5),
    )


def test_classes_without_a_box_are_no_trouble(route):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10]])
    keep = batched_nms(boxes, torch.tensor([0.3, 0.5, 0.9]), torch.tensor([4, 4, 79]), 0.5)
    assert keep.tolist() == [2, 1]


def nms_of_each_class(boxes, scores, classes, iou_thresh):
    """torchvision's NMS of the boxes of each class, where they are."""
    kept = []
    for label in classes.unique():
        rows = (classes == label).nonzero()[:, 0]
        kept.append(rows[nms(boxes[rows], scores[rows], iou_thresh)])
    keep = torch.cat(kept).sort().values
    return keep[scores[keep].sort(descending=True, stable=True).indices]


@pytest.mark.parametrize("num_classes", [80, 1203, 20_000])
@pytest.mark.parametrize("side", [1333, 30_000])
@pytest.mark.parametrize("count", [300, 900, 5300])
def test_many_classes_and_large_coordinates(num_classes, side, count):
    """Pairs of boxes with an IoU on both sides of the threshold, by as little as 10^-4."""
    generator = torch.Generator().manual_seed(0)
    corners = (side - 60) * torch.rand(count // 2, 2, generator=generator)
    sides = 8 + 40 * torch.rand(count // 2, 2, generator=generator)
    first = torch.cat((corners, corners + sides), dim=1)
    second = first.clone()
    excess = 10 ** (-4 + 3 * torch.rand(count // 2, generator=generator))
    excess = torch.where(torch.rand(count // 2, generator=generator) < 0.5, excess, -excess)
    second[:, 2] = first[:, 0] + sides[:, 0] * (0.6 + excess)
    # Some coordinates come out such that it is the threshold itself.
    ious = (second[:, 2] - second[:, 0]).double() / (first[:, 2] - first[:, 0]).double()
    is_clear = (ious - 0.6).abs() > 1e-5
    boxes = torch.cat((first[is_clear], second[is_clear]))
    scores = torch.rand(len(boxes), generator=generator)
    classes = torch.randint(0, num_classes, (len(boxes) // 2,), generator=generator).repeat(2)
    classes[0] = classes[len(boxes) // 2] = num_classes - 1
    expected = nms_of_each_class(boxes, scores, classes, 0.6)
    assert count * 0.6 < len(expected) < count * 0.9
    assert torch.equal(batched_nms(boxes, scores, classes, 0.6), expected)
    kept = kept_by_nms(boxes[None], scores[None], classes[None], scores[None] > -1, 0.6)
    assert kept[0].nonzero()[:, 0].tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("iou_thresh", [0.0, 0.1, 0.3, 1 / 3, 0.5, 0.6, 0.7, 0.9, 1.0])
def test_thresholds_are_those_of_float32(iou_thresh):
    """A box of 10 x 1 and one of n x 1 within it have an IoU of n / 10, or n / 9 of 9 x 1."""
    for whole in (9, 10):
        for part in range(1, whole + 1):
            boxes = torch.tensor([[0.0, 0, whole, 1], [0, 0, part, 1]])
            scores, classes = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
            expected = nms(boxes, scores, iou_thresh).tolist()
            assert batched_nms(boxes, scores, classes, iou_thresh).tolist() == expected


def test_switches_where_torchvision_does(monkeypatch):
    groups = []
    monkeypatch.setattr(
        nms_module, "_class_groups", lambda x: groups.append(len(x)) or [slice(0, len(x))]
    )
    for count in (1, 999, 1000, 1001):
        boxes = torch.tensor([[0.0, 0, 9, 9]]).expand(count, 4)
        batched_nms(boxes, torch.rand(count), torch.zeros(count, dtype=torch.int64), 0.5)
    assert groups == [1001]


@pytest.mark.parametrize("sizes", [[3], [1, 1, 1], [5, 1, 4, 1], [0, 7, 0, 2]])
@pytest.mark.parametrize("group_size", [1, 2, 4, 100])
def test_groups_are_whole_classes(sizes, group_size, monkeypatch):
    monkeypatch.setattr(nms_module, "_GROUP_SIZE", group_size)
    classes = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups = nms_module._class_groups(classes)
    assert [i for rows in groups for i in range(rows.start, rows.stop)] == list(range(len(classes)))
    for one, other in itertools.pairwise(groups):
        assert not set(classes[one].tolist()) & set(classes[other].tolist())
    assert len(groups) <= -(-len(classes) // group_size)
