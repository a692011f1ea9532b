"""What holds for every sample-selection rule: equal to its loops, whatever the scene."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.matchers import BACKGROUND, IGNORED, selection
from tests.matching_scenes import RULES, by_loops, grid, options_of, scenes, simple, stats_of

all_rules = pytest.mark.parametrize("rule", RULES)
quick = settings(max_examples=20, derandomize=True)


@all_rules
@settings(max_examples=50, derandomize=True)
@given(data=st.data())
def test_equals_the_loops(rule, data):
    scene = data.draw(scenes(rule))
    matched = RULES[rule][0](**scene.options)(scene.anchors, scene.gt_boxes)
    assert matched.dtype == torch.int64
    expected = by_loops(rule, scene.anchors, scene.gt_boxes, **scene.options)
    torch.testing.assert_close(matched, expected, rtol=0, atol=0)


@all_rules
@quick
@given(data=st.data())
def test_ignore_regions_equal_the_loops(rule, data):
    scene = data.draw(scenes(rule, max_levels=2))
    scene.options["ignore_ioa_thresh"] = data.draw(st.sampled_from([None, 0.0, 0.25, 0.5]))
    matched = RULES[rule][0](**scene.options)(scene.anchors, scene.gt_boxes, scene.gt_ignore)
    expected = by_loops(rule, scene.anchors, scene.gt_boxes, scene.gt_ignore, **scene.options)
    torch.testing.assert_close(matched, expected, rtol=0, atol=0)


@all_rules
@settings(max_examples=5, derandomize=True)
@given(data=st.data())
def test_equals_the_loops_with_up_to_seven_levels(rule, data):
    scene = data.draw(scenes(rule, max_levels=7))
    matched = RULES[rule][0](**scene.options)(scene.anchors, scene.gt_boxes)
    assert torch.equal(matched, by_loops(rule, scene.anchors, scene.gt_boxes, **scene.options))


@all_rules
@quick
@given(data=st.data(), max_entries=st.sampled_from([1, 7, 64]))
def test_chunks_change_nothing(rule, data, max_entries):
    scene = data.draw(scenes(rule))
    matcher = RULES[rule][0](**scene.options, ignore_ioa_thresh=0.25)
    arguments = scene.anchors, scene.gt_boxes, scene.gt_ignore
    whole = matcher(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(selection.MAX_CHUNK_ENTRIES, "cpu", max_entries)
        assert torch.equal(matcher(*arguments), whole)


@all_rules
@quick
@given(data=st.data())
def test_images_do_not_see_each_other(rule, data):
    scene = data.draw(scenes(rule))
    anchors, gt_boxes, gt_ignore = scene.anchors, scene.gt_boxes, scene.gt_ignore
    matcher = RULES[rule][0](**scene.options, ignore_ioa_thresh=0.25)
    together = matcher(anchors, gt_boxes, gt_ignore)
    alone = [matcher(anchors, [b], [f]) for b, f in zip(gt_boxes, gt_ignore, strict=True)]
    assert torch.equal(together, torch.cat(alone))
    backwards = matcher(anchors, gt_boxes[::-1], gt_ignore[::-1])
    assert torch.equal(backwards.flip(0), together)

    empty, no_flags = torch.zeros(0, 4), torch.zeros(0, dtype=torch.bool)
    with_empty = matcher(anchors, [empty, *gt_boxes, empty], [no_flags, *gt_ignore, no_flags])
    assert torch.equal(with_empty[1:-1], together)
    assert (with_empty[[0, -1]] == BACKGROUND).all()


@all_rules
@quick
@given(data=st.data(), x=st.integers(-64, 64), y=st.integers(-64, 64))
def test_moving_anchors_and_boxes_changes_nothing(rule, data, x, y):
    scene = data.draw(scenes(rule))
    # Quarters of pixels: all numbers stay exact when they are moved by whole pixels.
    anchors = [(a * 4).round() / 4 for a in scene.anchors]
    gt_boxes = [(b * 4).round() / 4 for b in scene.gt_boxes]
    by = torch.tensor([x, y, x, y])
    matcher = RULES[rule][0](**scene.options)
    moved = matcher([a + by for a in anchors], [b + by for b in gt_boxes])
    assert torch.equal(moved, matcher(anchors, gt_boxes))


@all_rules
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_boxes_does_not_matter(rule, seed):
    generator = torch.Generator().manual_seed(seed)
    anchors = grid([(12, 12), (6, 6), (3, 3)], [8, 16, 32], [(2, 2)])
    corners = 80 * torch.rand(12, 2, generator=generator)
    boxes = torch.cat((corners, corners + 30 * torch.rand(12, 2, generator=generator)), dim=1)
    order = torch.randperm(12, generator=generator)
    matched, permuted = simple(rule, num_levels=3)(anchors, [boxes, boxes[order]])
    is_positive = matched >= 0
    assert is_positive.sum() > 5
    assert torch.equal(is_positive, permuted >= 0)
    assert torch.equal(matched == IGNORED, permuted == IGNORED)
    assert torch.equal(matched[is_positive], order[permuted[is_positive]])


@all_rules
def test_equal_boxes_are_served_in_order_of_index(rule):
    anchors = grid([(4, 4), (2, 2)], [8, 16], [(1, 1)])
    boxes = torch.tensor([[6.0, 6, 18, 18]])
    matcher = simple(rule, num_levels=2)
    alone = matcher(anchors, [boxes])
    assert (alone == 0).any()
    assert torch.equal(matcher(anchors, [boxes.repeat(3, 1)]), alone)


@all_rules
def test_images_without_boxes(rule):
    anchors = grid([(3, 3), (1, 1)], [8, 16])
    matcher = simple(rule, num_levels=2, ignore_ioa_thresh=0.5)
    for num_images in (1, 3):
        matched = matcher(anchors, [torch.zeros(0, 4)] * num_images)
        assert matched.shape == (num_images, 10)
        assert (matched == BACKGROUND).all()
        stats = stats_of(matcher, anchors, [torch.zeros(0, 4)] * num_images)
        assert all(value == 0 for value in stats.values())
    no_flags = torch.zeros(0, dtype=torch.bool)
    assert (matcher(anchors, [torch.zeros(0, 4)], [no_flags]) == BACKGROUND).all()
    assert matcher(anchors, []).shape == (0, 10)
    assert matcher(anchors, [], []).shape == (0, 10)


@all_rules
@pytest.mark.parametrize(
    "box",
    [
        [10.0, 10, 10, 30],  # no width
        [10.0, 10, 30, 10],  # no height
        [12.0, 12, 12, 12],  # a point, on a center
        [30.0, 10, 10, 30],  # inverted in x
        [10.0, 30, 30, 10],  # inverted in y
        [30.0, 30, 10, 10],  # inverted in both: width x height is positive
        [0.0, 0, 0, 0],
        [float("nan"), 10, 30, 30],
        [float("nan")] * 4,
    ],
    ids=str,
)
@pytest.mark.parametrize("is_region", [False, True])
def test_boxes_that_are_none_get_no_anchor_and_disturb_no_other(rule, box, is_region):
    anchors = grid([(6, 6), (3, 3)], [8, 16], [(2, 2)])
    good = torch.tensor([[8.0, 8, 28, 24]])
    matcher = simple(rule, num_levels=2, ignore_ioa_thresh=0.0)
    alone = matcher(anchors, [good])[0]
    stats = stats_of(matcher, anchors, [good])
    flags = torch.tensor([is_region, False])
    scene = anchors, [torch.cat((torch.tensor([box]), good))], [flags]
    both = matcher(*scene)[0]
    assert (alone == 0).any()
    assert torch.equal(both, torch.where(alone == 0, 1, alone))
    torch.testing.assert_close(stats_of(matcher, *scene), stats)


@all_rules
@pytest.mark.parametrize(
    "box",
    [
        [-20.0, -20, 20, 20],  # across the corner
        [30.0, 30, 90, 90],
        [-50.0, 10, 120, 20],
        [0.0, 0, 48, 48],  # the whole image
        [-1000.0, -1000, 1000, 1000],
        [-1e6, -1e6, 1e6, 1e6],
        [-200.0, -200, -100, -100],  # far outside
        [47.0, 47, 48, 48],
        [15.5, 15.5, 16.5, 16.5],  # between four centers
    ],
    ids=str,
)
def test_boxes_at_and_beyond_the_border_tiny_and_huge(rule, box):
    anchors = grid([(6, 6), (3, 3), (2, 2)], [8, 16, 32], [(2, 2)])
    gt_boxes = [torch.tensor([box, [8.0, 8, 28, 24]])]
    matcher = simple(rule, num_levels=3)
    expected = by_loops(rule, anchors, gt_boxes, **options_of(matcher))
    assert torch.equal(matcher(anchors, gt_boxes), expected)


@pytest.mark.parametrize("rule", ["atss", "iou"])
def test_infinite_boxes_take_nothing_from_others(rule):
    anchors = grid([(6, 6), (3, 3)], [8, 16], [(2, 2)])
    good, inf = torch.tensor([[8.0, 8, 28, 24]]), float("inf")
    boxes = torch.tensor([[inf] * 4, [-inf, -inf, inf, inf], [0, 0, inf, 9]])
    matcher = simple(rule, num_levels=2)
    alone = matcher(anchors, [good])
    both = matcher(anchors, [torch.cat((boxes, good))])
    assert torch.equal(both, torch.where(alone == 0, 3, alone))


@all_rules
def test_boxes_too_large_for_float32_areas(rule):
    """An area overflows above 1.8e19 pixels; whatever happens must not spread to other boxes."""
    anchors = grid([(6, 6)], [8], [(2, 2)])
    good = torch.tensor([[8.0, 8, 28, 24]])
    huge = torch.tensor([[-1e20, -1e20, 1e20, 1e20]])
    matcher = simple(rule, num_levels=1)
    alone = matcher(anchors, [good])[0]
    scene = anchors, [torch.cat((good, huge))]
    both = matcher(*scene)[0]
    assert torch.equal(both == 0, alone == 0)
    assert all(value.isfinite() for value in stats_of(matcher, *scene).values())


@all_rules
def test_hundreds_of_boxes_in_an_image(rule):
    num_anchors = 3
    sides = [(1 + i / 2, 4 / (1 + i / 2)) for i in range(num_anchors)]
    anchors = grid([(4, 4), (2, 2)], [8, 16], sides)
    corners = torch.randint(0, 40, (300, 2)).float()
    boxes = torch.cat((corners, corners + torch.randint(0, 30, (300, 2))), dim=1)
    matcher = simple(rule, 2, num_anchors)
    together = matcher(anchors, [boxes, boxes[:1], boxes[:0]])
    assert together[0].max() > 100
    assert torch.equal(together[:1], by_loops(rule, anchors, [boxes], **options_of(matcher)))
    assert torch.equal(together[1:2], matcher(anchors, [boxes[:1]]))
    assert (together[2] == BACKGROUND).all()
