"""Who computes the same as ours, does so."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks import peers, scenes
from benchmarks.peers import Assignment, AssignmentScene
from benchmarks.published_atss import match_image

SIZE = (256, 320)


@pytest.fixture(params=[1, 5, 40])
def scene(request):
    return AssignmentScene.of(SIZE, request.param, torch.device("cpu"))


def labels_of(assignment):
    return assignment.read(assignment.run())


def test_all_that_compute_atss_agree(scene):
    expected, *others = [labels_of(a) for a in peers.atss_assignments(scene)]
    assert expected.shape == (2, scenes.num_anchors(SIZE))
    assert (expected >= 0).any(dim=1).all()
    for labels in others:
        torch.testing.assert_close(labels, expected, rtol=0, atol=0)


def test_other_rules_agree_with_theirs(scene):
    groups = peers.same_rule_assignments(scene)
    assert [[a.name for a in group] for group in groups] == [
        [peers.IOU, peers.D2_RETINANET, peers.TV_RETINANET],
        [peers.CENTER_SAMPLING, peers.D2_FCOS],
    ]
    for group in groups:
        expected = labels_of(group[0])
        assert len(expected.unique()) > 1
        for other in group[1:]:
            torch.testing.assert_close(labels_of(other), expected, rtol=0, atol=0)
        assert set(peers.count_different(group).values()) == {0}


def test_the_rules_are_not_all_the_same():
    scene = AssignmentScene.of(SIZE, 40, torch.device("cpu"))
    atss = peers.ours(scene)
    with pytest.raises(RuntimeError, match="FCOS's rule differs from ATSS in [0-9]+ anchors"):
        peers.count_different([atss, peers.fcos_rule(scene)])


def test_a_few_differences_are_counted():
    scene = AssignmentScene.of(SIZE, 40, torch.device("cpu"))
    atss = peers.ours(scene)
    rounded = labels_of(atss).clone()
    rounded[0, (rounded[0] >= 0).nonzero()[0]] = -1
    assert peers.count_different([atss, Assignment("x", lambda: rounded, lambda r: r)]) == {"x": 1}


def test_the_anchors_of_the_fallback_are_on_no_grid(monkeypatch):
    """Else it would be measured twice what is fast."""
    from atss_d2.modeling.matchers.grid import grid_sizes_of

    scene = AssignmentScene.of(SIZE, 3, torch.device("cpu"))
    seen = []

    def spy(anchors, boxes, **options):
        seen.append(([a.tensor for a in anchors], options))
        return torch.zeros(2, scenes.num_anchors(SIZE), dtype=torch.int64)

    monkeypatch.setattr(peers, "ATSSMatcher", lambda: spy)
    peers.fallback(scene).run()
    ((anchors, options),) = seen
    assert options == {}
    assert grid_sizes_of(anchors[:3], 1) is None
    sizes = scenes.level_sizes(SIZE)
    assert grid_sizes_of([a.tensor for a in scene.anchors()], 1) == sizes


class InstanceData(SimpleNamespace):
    """As much of mmengine's as is used."""


class ATSSAssigner:
    """Behaves like mmdetection's: 1 + index, 0 for background."""

    def __init__(self, topk):
        self.topk = topk

    def assign(self, pred_instances, num_level_priors, gt_instances):
        levels = pred_instances.priors.split(num_level_priors)
        matched = match_image(list(levels), gt_instances.bboxes, self.topk)
        assert gt_instances.labels.shape == gt_instances.bboxes.shape[:1]
        return SimpleNamespace(gt_inds=matched + 1)


def test_mmdetection_takes_part_where_it_is_installed(scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmdet", None)
    assert peers.mmdetection(scene) is None
    assert peers.MMDET not in [a.name for a in peers.atss_assignments(scene)]

    contents = {
        "mmdet": {},
        "mmdet.models": {},
        "mmdet.models.task_modules": {},
        "mmdet.models.task_modules.assigners": {"ATSSAssigner": ATSSAssigner},
        "mmengine": {},
        "mmengine.structures": {"InstanceData": InstanceData},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    found = {a.name: a for a in peers.atss_assignments(scene)}
    torch.testing.assert_close(
        labels_of(found[peers.MMDET]), labels_of(found[peers.OURS]), rtol=0, atol=0
    )
