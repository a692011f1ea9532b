"""PAA's sample selection: published assignments, loops, and what its options change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.gaussian_mixture import Mixture
from atss_d2.modeling.matchers import BACKGROUND, IGNORED, PAAMatcher, selection
from atss_d2.modeling.matchers.paa import separate
from atss_d2.modeling.nouns import DecodedPredictions
from atss_d2.modeling.scene import build_scene
from benchmarks.pretend_gpu import count, pretend, pretended_gpu
from tests import paa_loops, paa_scene
from tests.matching_scenes import scenes
from tests.paa_scene import numbers, of_images, of_the_batch, tensor
from tests.reference_matching import iou_match

MMDET = {"giou_cost_weight": 1.3, "low_quality_override": True, "keep_undivided": False}


def random_scene(seed, anchors, gt_boxes, num_classes=3):
    """A scene with predictions around the anchors."""
    generator = torch.Generator().manual_seed(seed)
    scene = build_scene(anchors, gt_boxes)
    num_anchors, num_images = sum(map(len, anchors)), len(gt_boxes)
    noise = torch.randn(num_images, num_anchors, 4, generator=generator)
    logits = 2 * torch.randn(num_images, num_anchors, num_classes, generator=generator)
    corners = torch.cat(anchors) + noise
    boxes = torch.cat((corners[..., :2], torch.maximum(*corners.split(2, dim=-1)) + 0.5), dim=-1)
    classes = torch.randint(0, num_classes, (len(scene.boxes),), generator=generator)
    return scene._replace(classes=classes, predictions=DecodedPredictions(logits, boxes))


# ----------------------------------------------------------------------------- public numbers


def test_assignments_are_those_of_mmdetection():
    """Box 3 holds no anchor centre; of the twins, box 6 of image 1 gets none (exact ties)."""
    scene, matcher = paa_scene.scene(), PAAMatcher(**MMDET)
    matched = matcher.match_by_iou(scene)
    assert torch.equal(matched, of_the_batch(of_images("paa.assigned_before")))
    assert not (matched == 6 + 6).any()
    classes = torch.cat((scene.classes, torch.tensor([5])))
    assert torch.equal(classes[matched], tensor("paa.labels_before"))
    costs = matcher.costs(scene, matched, torch.arange(matched.numel())).view_as(matched)
    expected = torch.stack(of_images("paa.cost"))
    torch.testing.assert_close(costs, expected, rtol=1e-6, atol=1e-6)

    selected = matcher.assign(scene).matched_idxs
    assert torch.equal(selected, of_the_batch(of_images("paa.assigned")))
    assert torch.equal(classes[selected], tensor("paa.labels"))
    assert (selected >= 0).sum() == numbers["paa.num_pos"]
    # The authors' settings differ in each of the three.
    for name in MMDET:
        if name != "keep_undivided":
            other = PAAMatcher(**{**MMDET, name: PAAMatcher().__dict__[name]})
            assert not torch.equal(other.assign(scene).matched_idxs, selected)


def test_selection_by_made_up_costs_is_that_of_mmdetection():
    """Box 4 has equal costs, of which mmdetection takes any; box 2 one candidate, box 5 none."""
    anchors = tensor("paa_match.anchor")
    scene = build_scene(paa_scene.anchors(), [torch.zeros(8, 4)])
    matched = torch.full((1, len(tensor("anchors"))), BACKGROUND)
    costs = torch.zeros(matched.shape[1])
    matched[0, anchors], costs[anchors] = tensor("paa_match.gt"), tensor("paa_match.cost")
    expected = torch.full_like(matched, BACKGROUND)
    positive = anchors[tensor("paa_match.positive")]
    expected[0, positive] = matched[0, positive]
    for keep_undivided in (False, True):
        matcher = PAAMatcher(keep_undivided=keep_undivided)
        selected = matcher.select(scene, matched, torch.arange(matched.numel()), costs)
        if keep_undivided:
            expected = torch.where(matched == 2, 2, expected)
            assert (expected == 2).sum() == 1
        clear = matched != 4
        assert torch.equal(selected[clear], expected[clear])
        assert (selected == 4).sum() == 1  # the first of the equal ones


@pytest.mark.parametrize("j", [0, 1, 2])
def test_separation_is_that_of_mmdetection(j):
    is_low = tensor(f"separation_{j}.component") == 0
    mixture = Mixture(is_low[None], tensor(f"separation_{j}.log_density")[None])
    everything = torch.ones_like(mixture.is_low)
    positive = separate(mixture, everything, keep_undivided=False)[0]
    assert torch.equal(
        tensor(f"separation_{j}.anchor")[positive], tensor(f"separation_{j}.positive")
    )
    by_the_authors = separate(mixture, everything)[0]
    assert torch.equal(by_the_authors, positive if is_low.any() else everything[0])


# -------------------------------------------------------------------------------------- loops


@settings(max_examples=30, derandomize=True, deadline=None)
@given(data=st.data(), topk=st.sampled_from([1, 2, 9]), is_mmdet=st.booleans())
def test_equals_the_loops(data, topk, is_mmdet):
    drawn = data.draw(scenes("iou"))
    scene = random_scene(data.draw(st.integers(0, 2**31)), drawn.anchors, drawn.gt_boxes)
    matcher = PAAMatcher(topk=topk, **(MMDET if is_mmdet else {}))
    selected = matcher.assign(scene).matched_idxs
    levels = [level.tolist() for level in drawn.anchors]
    matched = matcher.match_by_iou(scene)
    costs = matcher.costs(scene, matched, torch.arange(matched.numel())).view_as(matched)
    first = 0
    for i, boxes in enumerate(drawn.gt_boxes):
        by_iou = iou_match(
            levels,
            boxes.tolist(),
            thresholds=(0.1, 0.1),
            low_quality_override=matcher.low_quality_override,
        )
        for r, g in enumerate(by_iou):
            if g >= 0:
                prediction = (x[i, r].tolist() for x in scene.predictions[:2])
                expected = paa_loops.cost(
                    *prediction,
                    scene.classes[first + g].item(),
                    boxes[g].tolist(),
                    matcher.giou_cost_weight,
                )
                assert costs[i, r].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
        expected = paa_loops.select(
            [len(level) for level in levels],
            by_iou,
            costs[i].tolist(),
            topk=topk,
            keep_undivided=matcher.keep_undivided,
        )
        assert selected[i].tolist() == [g + first if g >= 0 else BACKGROUND for g in expected]
        first += len(boxes)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(data=st.data(), max_entries=st.sampled_from([1, 7, 64]))
def test_neither_chunks_nor_other_images_change_anything(data, max_entries):
    drawn = data.draw(scenes("iou"))
    scene = random_scene(0, drawn.anchors, drawn.gt_boxes)
    together = PAAMatcher().assign(scene).matched_idxs
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(selection.MAX_CHUNK_ENTRIES, "cpu", max_entries)
        assert torch.equal(PAAMatcher().assign(scene).matched_idxs, together)
    first = 0
    for i, boxes in enumerate(drawn.gt_boxes):
        alone = build_scene(drawn.anchors, [boxes])._replace(
            classes=scene.classes[first : first + len(boxes)],
            predictions=DecodedPredictions(*(x[i : i + 1] for x in scene.predictions[:2])),
        )
        matched = PAAMatcher().assign(alone).matched_idxs[0]
        assert torch.equal(torch.where(matched >= 0, matched + first, matched), together[i])
        first += len(boxes)


# ---------------------------------------------------------------------------------- edge cases


def small_scene(boxes, num_images=1):
    anchors = [8 * torch.tensor([[x, 0.0, x + 2, 2] for x in range(6)])]
    return random_scene(0, anchors, [torch.tensor(b).reshape(-1, 4) for b in boxes])


def test_a_single_candidate_is_positive_for_the_authors_only():
    scene = small_scene([[[0.0, 0, 2, 2]]])  # in the first anchor alone: IoU 1/64, its best
    assert PAAMatcher().assign(scene).matched_idxs.tolist() == [[0] + [BACKGROUND] * 5]
    matcher = PAAMatcher(keep_undivided=False)
    assert (matcher.assign(scene).matched_idxs == BACKGROUND).all()


def test_no_box_gets_no_positive():
    empty = torch.zeros(0, 4).tolist()
    for boxes in ([empty], [empty, empty], [[[8.0, 4, 8, 12]], [[4.0, 4, 2, 2]]]):
        scene = small_scene(boxes)
        matched = PAAMatcher().assign(scene).matched_idxs
        assert matched.shape == (len(boxes), 6)
        assert (matched == BACKGROUND).all()
    scene = small_scene([empty, [[0.0, 0, 20, 16]]])
    matched = PAAMatcher().assign(scene).matched_idxs
    assert (matched[0] == BACKGROUND).all()
    assert (matched[1] == 0).any()


@pytest.mark.parametrize("number", [float("nan"), torch.inf, -torch.inf, 1e4, -1e4])
def test_predictions_that_have_overflowed_come_last(number):
    """They cost more than all others; boxes and images without them are not affected."""
    scene = small_scene([[[0.0, 0, 20, 16]], [[0.0, 0, 20, 16]]])
    expected = PAAMatcher().assign(scene).matched_idxs
    for part in scene.predictions[:2]:
        part[0, 0] = number
    found = PAAMatcher().assign(scene).matched_idxs
    assert torch.equal(found[1], expected[1])
    assert found[0, 0] == BACKGROUND
    assert (found[0] >= 0).any()
    rows = torch.arange(12)
    costs = PAAMatcher().costs(scene, torch.zeros(2, 6, dtype=torch.int64), rows)
    assert costs.isfinite().all()
    assert costs.argmax() == 0


def test_a_confident_prediction_costs_less():
    scene = small_scene([[[0.0, 0, 20, 16]]])
    matched = torch.zeros(1, 6, dtype=torch.int64)
    scene.predictions.boxes[:] = torch.tensor([0.0, 0, 20, 16])
    scene.predictions.logits[:] = -4
    scene.predictions.logits[0, 1, scene.classes[0]] = 4
    costs = PAAMatcher().costs(scene, matched, torch.arange(6))
    assert costs.argmin() == 1
    assert costs.unique().numel() == 2
    unweighted = PAAMatcher(focal_loss_alpha=-1).costs(scene, matched, torch.arange(6))
    expected = [
        paa_loops.focal_loss([row.tolist()], [int(scene.classes[0])], alpha=-1)
        for row in scene.predictions.logits[0]
    ]
    assert unweighted.tolist() == pytest.approx(expected, rel=1e-5)
    plain = PAAMatcher(focal_loss_gamma=0).costs(scene, matched, torch.arange(6))
    assert (plain > costs).all()


def test_ignore_regions_get_no_positives():
    anchors = [8 * torch.tensor([[x, 0.0, x + 2, 2] for x in range(6)])]
    boxes = [torch.tensor([[0.0, 0, 20, 16], [24.0, 0, 56, 16]])]
    scene = random_scene(0, anchors, boxes)
    flags = [torch.tensor([False, True])]
    with_region = build_scene(anchors, boxes, flags)._replace(
        classes=scene.classes, predictions=scene.predictions
    )
    matched = PAAMatcher(ignore_ioa_thresh=0.5).assign(with_region).matched_idxs[0]
    assert (matched[3:] == IGNORED).all()
    assert (matched >= 0).any()
    assert not (matched == 1).any()


def test_a_gpu_gets_the_same_without_a_wait():
    scene, matcher = paa_scene.scene(), PAAMatcher()
    expected = matcher.assign(scene).matched_idxs

    def to_gpu(value):
        if isinstance(value, torch.Tensor):
            return pretend(value)
        return [pretend(x) for x in value] if isinstance(value, list) else value

    there = scene._replace(**{name: to_gpu(x) for name, x in scene._asdict().items()})
    there = there._replace(predictions=DecodedPredictions(*map(to_gpu, scene.predictions)))
    with pretended_gpu():
        assert torch.equal(matcher.assign(there).matched_idxs.values, expected)
    _, waits = count(lambda: matcher.assign(there))
    assert waits.total() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0}, "topk must be >= 1, got 0"),
        ({"iou_thresh": 0.0}, r"iou_thresh must be in \(0, 1\], got 0.0"),
        ({"giou_cost_weight": -1.0}, "giou_cost_weight must be >= 0, got -1.0"),
        ({"focal_loss_gamma": -1.0}, "focal_loss_gamma must be >= 0, got -1.0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        PAAMatcher(**options)


def test_needs_predictions():
    with pytest.raises(ValueError, match="PAAMatcher selects by predictions"):
        PAAMatcher()([torch.zeros(3, 4)], [torch.zeros(1, 4)])
