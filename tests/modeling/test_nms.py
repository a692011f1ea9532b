"""NMS per class gives the same by every route."""

import itertools

import pytest
import torch
from detectron2.layers import batched_nms as detectron2_batched_nms
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling import nms as nms_module
from atss_d2.modeling.nms import batched_nms
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
        patch.setattr(nms_module, "_CPU_GROUPS_FROM", 10**9)
    else:
        patch.setattr(nms_module, "_CPU_GROUPS_FROM", 1)
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
    if way == "all at once":  # Detectron2's order of equal scores is not stated
        keep = torch.tensor(sorted(keep.tolist(), key=lambda i: (-scores[i].item(), i)))
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
