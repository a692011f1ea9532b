"""From predictions to detections: against loops and the detections of public implementations."""

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling import pre_nms as pre_nms_module
from atss_d2.modeling.box_coding import PointDistances, TwoSidedBox2BoxTransform
from atss_d2.modeling.nouns import Predictions
from atss_d2.modeling.postprocess import clip_boxes, postprocess
from atss_d2.modeling.pre_nms import (
    NO_SCORE,
    RANKINGS,
    SCORE_TYPES,
    select_fixed_number,
    select_pre_nms,
    select_survivors,
)
from tests import reference

published = reference.published()


class DeltasAreBoxes:
    """A box coder whose deltas are the boxes: whole numbers stay whole."""

    def apply_deltas(self, deltas, anchors):
        assert deltas.dtype == torch.float32
        assert deltas.shape == anchors.shape
        return deltas


def level(boxes, logits, centerness=None):
    """One level of predictions, one box per anchor."""
    boxes, logits = torch.tensor(boxes).float(), torch.tensor(logits).float()
    if centerness is None:
        centerness = torch.full((len(boxes),), 50.0)  # a sigmoid of 1
    return boxes, boxes, logits, torch.as_tensor(centerness)


def postprocess_image(anchors, logits, deltas, centerness, image_size, **options):
    """postprocess() of one image."""
    logits, deltas = ([x[None] for x in part] for part in (logits, deltas))
    if centerness is not None:
        centerness = [x[None] for x in centerness]
    predictions = Predictions(logits, deltas, centerness)
    (detections,) = postprocess(predictions, anchors, [image_size], **options)
    return detections


def run(levels, image_size=(100, 100), **options):
    """Detections of levels of (anchors, deltas, logits, centerness)."""
    anchors, deltas, logits, centerness = map(list, zip(*levels, strict=True))
    options = {"box2box_transform": DeltasAreBoxes(), **options}
    return postprocess_image(anchors, logits, deltas, centerness, image_size, **options)


def logit(p):
    return torch.as_tensor(p).double().logit().float()


# --------------------------------------------------------------------------- against the loops


@st.composite
def scenes(draw):
    """Predictions of some levels: boxes of whole numbers, random scores without ties."""
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    num_classes = draw(st.sampled_from([1, 2, 5]))
    levels = []
    for num_anchors in draw(st.lists(st.integers(0, 25), min_size=1, max_size=4)):
        corners = torch.randint(-10, 50, (num_anchors, 2), generator=generator)
        sides = torch.randint(0, 30, (num_anchors, 2), generator=generator)
        boxes = torch.cat((corners, corners + sides), dim=1).float()
        logits = 2 * torch.randn(num_anchors, num_classes, generator=generator) - 1
        centerness = 2 * torch.randn(num_anchors, generator=generator)
        levels.append((boxes, boxes, logits, centerness))
    options = {
        "score_thresh": draw(st.sampled_from([0.05, 0.3, 0.0, 1.0])),
        "topk_candidates": draw(st.sampled_from([1, 7, 1000])),
        "nms_thresh": draw(st.sampled_from([0.0, 0.3137, 0.6137, 1.0])),  # no IoU of whole numbers
        "max_detections": draw(st.sampled_from([1, 10, 100])),
        "score_type": draw(st.sampled_from(SCORE_TYPES)),
        "rank_by": draw(st.sampled_from(RANKINGS)),
    }
    image_size = draw(st.sampled_from([(40, 60), (30, 20), (200, 200)]))
    return levels, image_size, options


@settings(max_examples=120, derandomize=True)
@given(scenes())
def test_equals_the_loops(scene):
    levels, image_size, options = scene
    boxes, scores, classes = run(levels, image_size, **options)
    anchors, deltas, logits, centerness = ([x.tolist() for x in part] for part in zip(*levels))
    expected = reference.detections(
        anchors,
        logits,
        deltas,
        centerness,
        image_size,
        apply_deltas=lambda delta, anchor: delta,
        **options,
    )
    assert classes.tolist() == [k for _, k, _ in expected]
    assert boxes.tolist() == [box for _, _, box in expected]
    torch.testing.assert_close(
        scores, torch.tensor([score for score, _, _ in expected]), rtol=1e-5, atol=1e-6
    )


def test_equals_the_loops_with_the_coder_of_the_paper():
    generator = DefaultAnchorGenerator(
        sizes=[[32], [64]], aspect_ratios=[1.0], strides=[8, 16], offset=0.5
    )
    anchors = [a.tensor for a in generator([torch.zeros(1, 1, 6, 7), torch.zeros(1, 1, 3, 4)])]
    levels = [
        (a, 3 * torch.randn(len(a), 4), 2 * torch.randn(len(a), 3) - 2, torch.randn(len(a)))
        for a in anchors
    ]
    boxes, scores, classes = run(
        levels, (45, 50), box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    )
    lists = [[x.tolist() for x in part] for part in zip(*levels, strict=True)]
    expected = reference.detections(lists[0], lists[2], lists[1], lists[3], (45, 50))
    assert len(expected) > 20
    assert classes.tolist() == [k for _, k, _ in expected]
    torch.testing.assert_close(
        boxes, torch.tensor([box for _, _, box in expected]), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(scores, torch.tensor([score for score, _, _ in expected]))


# ----------------------------------------------------------------------------- public numbers


def of_image(prefix, i, boxes_of=None):
    """Published predictions of an image as levels of (Ri, 5), (Ri, 4) and (Ri,)."""
    outputs = []
    for name in ("cls", "reg", "ctr"):
        source = boxes_of if name == "reg" and boxes_of else prefix
        maps = [torch.from_numpy(published[f"{source}.{name}_{level}"][i]) for level in range(5)]
        outputs.append([m.permute(1, 2, 0).flatten(0, 1) for m in maps])
    logits, deltas, centerness = outputs
    return logits, deltas, [c[:, 0] for c in centerness]


def detections_of(prefix, i, anchors, **options):
    width, height = published["sizes_wh"][i].tolist()
    logits, deltas, centerness = of_image(prefix, i)
    options = {"box2box_transform": Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), **options}
    return postprocess_image(anchors, logits, deltas, centerness, (height, width), **options)


def sorted_detections(prefix, i):
    boxes, scores, classes = (
        torch.from_numpy(published[f"{prefix}.det_{name}_{i}"])
        for name in ("boxes", "scores", "classes")
    )
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order], classes[order].long()


@pytest.mark.parametrize("i", [0, 1])
def test_detections_are_those_of_the_authors(i):
    """Inclusive corners would differ only in boxes that are clipped to less than a pixel."""
    sizes = [h * w for h, w in published["level_shapes"].tolist()]
    anchors = torch.from_numpy(published["authors.atss_box.anchors"]).split(sizes)
    ours, theirs = (
        detections_of("authors.atss_box", i, anchors),
        sorted_detections("authors.atss_box", i),
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("i", [0, 1])
def test_detections_from_points_are_those_of_the_authors(i):
    """Their head differs from that of the boxes in the bias of the box predictor only."""
    sizes = [h * w for h, w in published["level_shapes"].tolist()]
    anchors = torch.from_numpy(published["authors.atss_box.anchors"]).split(sizes)
    width, height = published["sizes_wh"][i].tolist()
    logits, deltas, centerness = of_image("authors.atss_box", i, boxes_of="authors.atss_point")
    ours = postprocess_image(
        anchors,
        logits,
        deltas,
        centerness,
        (height, width),
        box2box_transform=PointDistances(inset=0.5),
    )
    torch.testing.assert_close(ours, sorted_detections("authors.atss_point", i), rtol=0, atol=1e-4)


def mmdet_anchors():
    shapes = published["level_shapes"].tolist()
    return [
        torch.tensor(a) for a in reference.grid_anchors(shapes, [8, 16, 32, 64, 128], offset=0.0)
    ]


@pytest.mark.parametrize("i", [0, 1])
def test_detections_are_those_of_mmdetection(i):
    """Its score is the product without the root, and its candidates are ranked before that."""
    ours = detections_of(
        "mmdet",
        i,
        mmdet_anchors(),
        score_type="product",
        rank_by="class_score",
        box2box_transform=TwoSidedBox2BoxTransform((10.0, 10.0, 5.0, 5.0)),
    )
    torch.testing.assert_close(ours, sorted_detections("mmdet", i), rtol=0, atol=1e-4)


def test_detections_are_nearly_those_of_mmdetection_where_candidates_differ():
    """Of image 0 some detections are not among its 1000 best by class score alone.

    It ranks the candidates of a level before, we (and the authors) after centerness.
    """
    boxes, scores, classes = detections_of("mmdet", 0, mmdet_anchors())
    their_boxes, their_scores, their_classes = sorted_detections("mmdet", 0)
    same = pairwise_iou(Boxes(boxes), Boxes(their_boxes)) > 0.999
    same &= classes[:, None] == their_classes
    same &= (scores.square()[:, None] - their_scores).abs() < 1e-5
    assert same.any(dim=1).sum() >= 95
    # What they miss scores at least as high as the last of what they keep.
    assert (scores.square()[~same.any(dim=1)] >= their_scores[-1]).all()


# ---------------------------------------------------------------------------- numbers by hand


def test_score_is_the_root_of_class_score_times_centerness():
    boxes, scores, classes = run(
        [level([[0, 0, 9, 9]], [logit([0.9, 0.01]).tolist()], logit([0.4]))]
    )
    assert boxes.tolist() == [[0, 0, 9, 9]]
    torch.testing.assert_close(scores, torch.tensor([0.36]).sqrt())
    assert classes.tolist() == [0]
    assert classes.dtype == torch.int64


def test_the_threshold_is_on_the_class_score_alone():
    far_apart = [[0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49]]
    # The first is below the threshold, the second is not, however small its final score.
    logits = logit([[0.04], [0.06], [0.5]]).tolist()
    boxes, scores, _ = run([level(far_apart, logits, logit([0.999, 0.0001, 0.5]))])
    assert boxes.tolist() == [far_apart[2], far_apart[1]]
    assert scores[1] < 0.05


def test_a_score_at_the_threshold_is_no_detection():
    one = level([[0, 0, 9, 9]], [[0.0]])
    assert len(run([one], score_thresh=0.5)[0]) == 0
    assert len(run([one], score_thresh=0.4999)[0]) == 1


def test_candidates_of_a_level_are_ranked_with_centerness():
    # By class score the first is best, with centerness the second: 0.9 x 0.1 < 0.5 x 0.9.
    apart = [[0, 0, 9, 9], [20, 20, 29, 29]]
    levels = [level(apart, logit([[0.9], [0.5]]).tolist(), logit([0.1, 0.9]))]
    assert run(levels, topk_candidates=1)[0].tolist() == [apart[1]]


def test_candidates_of_a_level_are_ranked_without_centerness():
    # As above, but the first is taken; of both of them the second is still the better detection.
    apart = [[0, 0, 9, 9], [20, 20, 29, 29]]
    levels = [level(apart, logit([[0.9], [0.5]]).tolist(), logit([0.1, 0.9]))]
    assert run(levels, topk_candidates=1, rank_by="class_score")[0].tolist() == [apart[0]]
    assert run(levels, topk_candidates=2, rank_by="class_score")[0].tolist() == apart[::-1]


def test_score_is_the_plain_product():
    one = level([[0, 0, 9, 9]], [logit([0.9]).tolist()], logit([0.4]))
    for rank_by in RANKINGS:
        scores = run([one], score_type="product", rank_by=rank_by)[1]
        torch.testing.assert_close(scores, torch.tensor([0.36]))


@pytest.mark.parametrize("score_type", SCORE_TYPES)
@pytest.mark.parametrize("rank_by", RANKINGS)
def test_without_centerness_the_score_is_the_class_score(score_type, rank_by):
    boxes, deltas, logits, _ = level([[0, 0, 9, 9]], [logit([0.36]).tolist()])
    options = {"score_type": score_type, "rank_by": rank_by, "box2box_transform": DeltasAreBoxes()}
    scores = postprocess_image([boxes], [logits], [deltas], None, (100, 100), **options)[1]
    torch.testing.assert_close(scores, torch.tensor([0.36]))


def test_topk_is_per_level_and_over_anchors_and_classes():
    apart = [[0, 0, 9, 9], [20, 20, 29, 29]]
    first = level(apart, logit([[0.9, 0.8], [0.7, 0.6]]).tolist())
    second = level([[40, 40, 49, 49]], logit([[0.1, 0.2]]).tolist())
    boxes, scores, classes = run([first, second], topk_candidates=2)
    assert classes.tolist() == [0, 1, 1, 0]
    assert boxes[:, 0].tolist() == [0, 0, 40, 40]
    torch.testing.assert_close(scores.square(), torch.tensor([0.9, 0.8, 0.2, 0.1]))


def test_nms_is_per_class():
    overlapping = [[0, 0, 10, 10], [0, 0, 10, 9]]
    same_class = [level(overlapping, logit([[0.9, 0.01], [0.8, 0.01]]).tolist())]
    assert run(same_class)[0].tolist() == [overlapping[0]]
    other_class = [level(overlapping, logit([[0.9, 0.01], [0.01, 0.8]]).tolist())]
    assert run(other_class)[0].tolist() == overlapping


def test_nms_works_across_levels():
    first = level([[0, 0, 10, 10]], logit([[0.8]]).tolist())
    second = level([[0, 0, 10, 9]], logit([[0.9]]).tolist())
    assert run([first, second])[0].tolist() == [[0, 0, 10, 9]]
    assert len(run([first, second], nms_thresh=0.95)[0]) == 2  # their IoU is 0.9


def test_boxes_are_clipped_before_nms():
    # As they stand their IoU is 400/1600; within the image they are the same box.
    boxes = [[-20, -20, 20, 20], [0, 0, 20, 20]]
    detections = run([level(boxes, logit([[0.9], [0.8]]).tolist())], image_size=(20, 20))
    assert detections[0].tolist() == [[0, 0, 20, 20]]


def test_boxes_of_different_classes_outside_of_the_image_do_not_meet():
    """batched_nms shifts the boxes of class 1 by the largest coordinate + 1, here 41.

    The second box would come to lie at [6, 6, 46, 46], on the first one.
    """
    boxes = [[0, 0, 40, 40], [-35, -35, 5, 5]]
    levels = [level(boxes, logit([[0.9, 0.01], [0.01, 0.8]]).tolist())]
    assert len(run(levels, nms_thresh=0.1)[0]) == 2


def test_clipping_knows_height_from_width():
    boxes = torch.tensor([[-5.0, -6, 500, 600], [10, 20, 30, 40], [70, 70, 80, 80]])
    clipped = clip_boxes(boxes, (50, 60))
    assert clipped.tolist() == [[0, 0, 60, 50], [10, 20, 30, 40], [60, 50, 60, 50]]
    assert boxes[0, 0] == -5  # not in place
    assert clip_boxes(torch.zeros(0, 4), (50, 60)).shape == (0, 4)


def test_no_more_than_the_allowed_number_and_best_first():
    corners = 12 * torch.arange(300)
    boxes = torch.stack((corners, corners, corners + 10, corners + 10), dim=1).tolist()
    levels = [level(boxes, torch.randn(300, 4).tolist(), torch.randn(300))]
    _, all_scores, _ = run(levels, (5000, 5000), max_detections=5000)
    assert len(all_scores) > 500
    detections = run(levels, (5000, 5000))
    assert [len(x) for x in detections] == [100] * 3
    assert (detections[1].diff() <= 0).all()
    torch.testing.assert_close(detections[1], all_scores.sort(descending=True).values[:100])


@pytest.mark.parametrize("num_anchors", [0, 4])
def test_no_detection(num_anchors):
    nothing = (
        torch.zeros(num_anchors, 4),
        torch.zeros(num_anchors, 4),
        torch.full((num_anchors, 3), -9.0),
        torch.zeros(num_anchors),
    )
    boxes, scores, classes = run([nothing, nothing])
    assert boxes.shape == (0, 4)
    assert scores.shape == classes.shape == (0,)
    assert classes.dtype == torch.int64


def test_a_level_without_candidates_beside_one_with():
    nothing = level([[0, 0, 9, 9]], [[-9.0, -9.0]])
    something = level([[20, 20, 29, 29]], [[-9.0, 2.0]])
    assert run([nothing, something, nothing])[2].tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_and_boxes_are_computed_in_float32(dtype):
    anchors = torch.tensor([[0.0, 0, 900, 900], [400, 400, 444, 444]])
    deltas = torch.randn(2, 4).to(dtype)
    logits, centerness = torch.randn(2, 3).to(dtype), torch.randn(2).to(dtype)
    options = {
        "image_size": (1000, 1000),
        "box2box_transform": Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
    }
    boxes, scores, classes = run([(anchors, deltas, logits, centerness)], **options)
    expected = run([(anchors, deltas.float(), logits.float(), centerness.float())], **options)
    assert boxes.dtype == scores.dtype == torch.float32
    torch.testing.assert_close((boxes, scores, classes), expected, rtol=0, atol=0)
    run([(anchors, deltas, logits, centerness)])  # the coder itself is given float32


@pytest.mark.parametrize("num_boxes", [10, 3000])
def test_one_nan_does_not_switch_nms_off(num_boxes):
    """A single box that is not a number would make NMS keep everything."""
    boxes = torch.tensor([[10.0, 10, 50, 50]]).repeat(num_boxes, 1)
    logits = torch.linspace(2, 3, num_boxes)[:, None]
    boxes[-4] = float("nan")  # the fourth best
    detections = run([(boxes, boxes, logits, torch.zeros(num_boxes))])
    assert detections[0].tolist() == [[10, 10, 50, 50]]


@pytest.mark.parametrize("select", [select_survivors, select_fixed_number])
@pytest.mark.parametrize("num_outside", [3, 2000])
def test_boxes_without_area_take_no_places(select, num_outside, monkeypatch):
    """Boxes beside the image have the best scores, and clipping leaves a line of each."""
    monkeypatch.setattr(pre_nms_module, "select_survivors", select)
    outside = [[-30, 5, -10, 30], [70, 0, 90, 30], [5, -9, 20, 0], [5, 40, 20, 40]]
    boxes = [*(outside * num_outside)[:num_outside], [5, 5, 9, 9], [20, 20, 30, 30.5]]
    logits = [[4.0, 4.0]] * num_outside + [[1.0, -9], [-9, 2.0]]
    found = run(
        [level(boxes, logits)], image_size=(40, 60), max_detections=2, topk_candidates=10**4
    )
    assert found[0].tolist() == [[20, 20, 30, 30.5], [5, 5, 9, 9]]
    assert found[2].tolist() == [1, 0]


def test_a_nan_score_is_no_detection():
    one = level([[0, 0, 9, 9], [20, 20, 29, 29]], [[float("nan")], [2.0]])
    assert run([one])[0].tolist() == [[20, 20, 29, 29]]


def neighbors(threshold, dtype, count=8):
    """Numbers of a type around the logit of a threshold, each the next one of that type."""
    below = above = torch.tensor(threshold, dtype=torch.float64).logit().to(dtype)
    numbers = [below]
    for _ in range(count):
        below = torch.nextafter(below, torch.tensor(-torch.inf, dtype=dtype))
        above = torch.nextafter(above, torch.tensor(torch.inf, dtype=dtype))
        numbers += [below, above]
    ends = torch.tensor([-torch.inf, torch.inf, torch.nan, 0], dtype=dtype)
    return torch.cat((torch.stack(numbers), ends))


THRESHOLDS = [i / 1000 for i in range(1000)]
THRESHOLDS += [0.05, 1 / 3, 1e-4, 1e-6, 1e-12, 1e-30, 1e-39, 1e-44, -1.0, 1.0, 2.0]
THRESHOLDS += [1 - 10.0**-i for i in range(3, 10)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_both_ways_to_select_agree_at_any_threshold(dtype):
    for threshold in THRESHOLDS:
        logits = neighbors(threshold, dtype)[:, None]
        survivors = select_survivors(logits, None, threshold, 100)
        scores, *places = select_fixed_number(logits, None, threshold, 100)
        is_taken = scores > NO_SCORE
        assert torch.equal(survivors[0], scores[is_taken]), threshold
        chosen = {place.item() for place in places[0][is_taken]}
        assert set(survivors[1].tolist()) == chosen, threshold
        expected = (logits.float().sigmoid() > threshold).sum()
        assert len(survivors[0]) == expected, threshold


def test_selected_candidates_by_hand():
    logits = logit([[0.9, 0.3], [0.02, 0.6], [0.04, 0.01]])
    logits = torch.stack((logits, logit([[0.01, 0.01], [0.01, 0.01], [0.01, 0.7]])))
    centerness = logit([[0.5, 0.9, 0.9], [0.5, 0.5, 0.3]])
    scores, anchor_idxs, classes = select_pre_nms(logits, centerness, 0.05, 2)
    torch.testing.assert_close(
        scores, torch.tensor([[(0.6 * 0.9) ** 0.5, (0.9 * 0.5) ** 0.5], [0.21**0.5, NO_SCORE]])
    )
    assert anchor_idxs.tolist() == [[1, 0], [2, 0]]
    assert classes.tolist() == [[1, 0], [1, 0]]


def test_a_threshold_on_the_score_counts_the_quality():
    """Class scores 0.1, 0.3, 0.6; scores 0.3, 0.17, 0.24, or 0.09, 0.03, 0.06 without the root."""
    args = logit([[0.1], [0.3], [0.6]]), logit([0.9, 0.1, 0.1])
    for select in (select_survivors, select_fixed_number):
        for score_type, score_thresh, expected in (
            ("sqrt", 0.2, [0, 2]),
            ("product", 0.05, [0, 2]),
        ):
            scores, anchor_idxs, _ = select(*args, score_thresh, 9, score_type, thresh_on="score")
            assert anchor_idxs[scores > NO_SCORE].tolist() == expected
        scores, anchor_idxs, _ = select(*args, 0.2, 9)
        assert anchor_idxs[scores > NO_SCORE].tolist() == [2, 1]
        scores, anchor_idxs, _ = select(args[0], None, 0.2, 9, thresh_on="score")
        assert anchor_idxs[scores > NO_SCORE].tolist() == [2, 1]  # no quality: no root either


@pytest.mark.parametrize("score_type", SCORE_TYPES)
def test_both_ways_agree_next_to_a_threshold_on_the_score(score_type):
    """The quality is almost 1, so that logits are near the bound by which they are chosen."""
    quality = torch.full((61,), 17.0)
    for threshold in (0.05, 0.2, 0.5, 1e-4, 0.9, -1.0):
        least = max(threshold, 0) ** 2 if score_type == "sqrt" else threshold
        at = torch.logit(torch.tensor(least, dtype=torch.float64)).clamp(min=-50)
        logits = (at + 2e-7 * torch.arange(-30, 31)).float()[:, None]
        args = (logits, quality, threshold, 100, score_type, "score", "score")
        scores, _, _ = select_survivors(*args)
        fixed, _, _ = select_fixed_number(*args)
        assert torch.equal(scores, fixed[fixed > NO_SCORE])
        if threshold > 0:
            assert 0 < len(scores) < 61


def test_the_arguments_are_not_changed():
    levels = [level([[-5, -5, 9, 9], [0, 0, 9, 9]], [[1.0], [2.0]])]
    before = [tuple(x.clone() for x in part) for part in levels]
    run(levels)
    torch.testing.assert_close(levels, before, rtol=0, atol=0)


# --------------------------------------------------------------------- two ways to select


@pytest.mark.parametrize("with_centerness", [True, False])
@pytest.mark.parametrize("score_thresh", [0.0, 0.05, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("topk_candidates", [1, 20, 10**6])
@pytest.mark.parametrize("score_type", SCORE_TYPES)
@pytest.mark.parametrize("rank_by", RANKINGS)
@pytest.mark.parametrize("thresh_on", RANKINGS)
def test_both_ways_to_select_give_the_same(
    with_centerness, score_thresh, topk_candidates, score_type, rank_by, thresh_on
):
    """The one of the GPU fills up what is missing with places that have no score."""
    logits = 3 * torch.randn(50, 7) - 2
    logits[:3] = torch.tensor([[torch.inf], [-torch.inf], [torch.nan]])
    centerness = torch.randn(50) if with_centerness else None
    args = (logits, centerness, score_thresh, topk_candidates, score_type, rank_by, thresh_on)
    scores, anchor_idxs, classes = select_survivors(*args)
    fixed = select_fixed_number(*args)
    assert len(fixed[0]) == min(topk_candidates, logits.numel())
    assert (fixed[0][len(scores) :] == NO_SCORE).all()
    fixed = [x[: len(scores)] for x in fixed]
    torch.testing.assert_close(fixed[0], scores)
    torch.testing.assert_close(
        logits[fixed[1], fixed[2]], logits[anchor_idxs, classes], equal_nan=True
    )


@pytest.mark.parametrize("score_thresh", [0.05, 0.2, 0.999])
@pytest.mark.parametrize("rank_by", RANKINGS)
def test_detections_do_not_depend_on_the_way(monkeypatch, score_thresh, rank_by):
    anchors = [torch.tensor(level) for level in reference.grid_anchors([(6, 8), (3, 4)], [8, 16])]
    sizes = [len(level) for level in anchors]
    args = (
        anchors,
        [2 * torch.randn(n, 5) - 1 for n in sizes],
        [torch.randn(n, 4) for n in sizes],
        [torch.randn(n) for n in sizes],
        (48, 64),
    )
    options = {
        "box2box_transform": Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        "score_thresh": score_thresh,
        "rank_by": rank_by,
    }
    expected = postprocess_image(*args, **options)
    monkeypatch.setattr("atss_d2.modeling.pre_nms.select_survivors", select_fixed_number)
    torch.testing.assert_close(postprocess_image(*args, **options), expected)
    if score_thresh > 0.99:
        assert len(expected[0]) == 0


@pytest.mark.parametrize("score_thresh", [0.05, 0.5, 0.2])
def test_scores_next_to_the_threshold(score_thresh):
    """Candidates are found by their logits, but judged by their scores."""
    at = torch.logit(torch.tensor(score_thresh, dtype=torch.float64))
    logits = (at + 1e-7 * torch.arange(-30, 31)).float()[:, None]
    scores, _, _ = select_survivors(logits, None, score_thresh, 1000)
    assert len(scores) == int((logits.sigmoid() > score_thresh).sum())
    assert 0 < len(scores) < 61
