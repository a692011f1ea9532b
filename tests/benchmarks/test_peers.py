"""Who computes the same as ours, does so."""

import pytest
import torch

from benchmarks import peers, scenes
from benchmarks.peers import AssignmentScene

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
