"""Labels of every published variant, anchor by anchor."""

import pytest
import torch

from atss_d2.modeling.matchers import ATSSMatcher, IoUMatcher, ScaleRangeMatcher
from tests import reference, reference_matching
from tests.matching_scenes import grid

published = reference.published()
GT_BOXES = [torch.from_numpy(published[f"gt_boxes_{i}"]) for i in range(2)]
SHAPES = published["level_shapes"].tolist()

# Sample selection of the authors -> our rule and its loops. Their corners are inclusive: 0.5 px.
INSET = {"inset": 0.5}
AUTHORS = {
    "atss": (ATSSMatcher, reference_matching.atss_match, INSET),
    "iou": (IoUMatcher, reference_matching.iou_match, {**INSET, "center_in_gt": True}),
    "ssc": (
        ScaleRangeMatcher,
        reference_matching.fcos_match,
        {**INSET, "strides": [8, 16, 32, 64, 128]},
    ),
}


def authors_anchors(num_anchors=1):
    name = "atss_box" if num_anchors == 1 else "atss_box_a9"
    sizes = [height * width * num_anchors for height, width in SHAPES]
    return torch.from_numpy(published[f"authors.{name}.anchors"]).split(sizes)


def labels_of(matched, image):
    """Labels as the authors write them: 0 background, -1 ignored, else class + 1."""
    classes = torch.from_numpy(published[f"gt_classes_{image}"])
    labels = torch.where(matched >= 0, classes[matched.clamp(min=0)] + 1, 0)
    return torch.where(matched == -2, -1, labels)


@pytest.mark.parametrize(
    "variant",
    ["atss_box", "atss_point", "atss_box_a9", "iou_box", "iou_point", "ssc_box", "ssc_point"],
)
def test_labels_are_those_of_the_authors(variant):
    num_anchors = 9 if variant == "atss_box_a9" else 1
    rule, _, options = AUTHORS[variant.split("_")[0]]
    if rule is ATSSMatcher:
        options = {**options, "num_anchors": num_anchors}
    matched = rule(**options)(authors_anchors(num_anchors), GT_BOXES)
    for i in range(2):
        theirs = torch.from_numpy(published[f"authors.{variant}.labels_{i}"])
        assert torch.equal(labels_of(matched[i], i), theirs.long())
        torch.testing.assert_close(
            GT_BOXES[i][matched[i][matched[i] >= 0]],
            torch.from_numpy(published[f"authors.{variant}.matched_boxes_{i}"]),
            rtol=0,
            atol=1e-4,  # theirs went through their box coder and back
        )


@pytest.mark.parametrize("selection", AUTHORS)
def test_the_labels_need_the_inset(selection):
    """In continuous geometry some labels of the scene are others: the tests above can fail."""
    rule, _, options = AUTHORS[selection]
    matched = rule(**{**options, "inset": 0.0})(authors_anchors(), GT_BOXES)[0]
    theirs = torch.from_numpy(published[f"authors.{selection}_box.labels_0"])
    assert 0 < (labels_of(matched, 0) != theirs).sum() < 20


@pytest.mark.parametrize("selection", AUTHORS)
def test_the_loop_versions_are_those_of_the_authors(selection):
    """Holds the loops of the other tests to the published labels."""
    _, match, options = AUTHORS[selection]
    levels = [level.tolist() for level in authors_anchors()]
    matched = torch.tensor(match(levels, GT_BOXES[0].tolist(), **options))
    theirs = torch.from_numpy(published[f"authors.{selection}_box.labels_0"])
    assert torch.equal(labels_of(matched, 0), theirs.long())


def test_assignment_is_that_of_mmdetection():
    matched = ATSSMatcher()(grid(SHAPES, [8, 16, 32, 64, 128], offset=0.0), GT_BOXES)
    theirs = torch.stack([torch.from_numpy(published[f"mmdet.assigned_{i}"]) for i in range(2)])
    assert torch.equal(matched, theirs.long())
