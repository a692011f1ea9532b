"""Random scenes for sample selection, and the rules with their loop versions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from atss_d2.modeling.matchers import (
    ATSSMatcher,
    CenterSamplingMatcher,
    DenseMatcher,
    IoUMatcher,
    ScaleRangeMatcher,
    TopKMatcher,
)
from atss_d2.modeling.scene import build_scene
from tests import reference, reference_matching

# Name of a rule -> its class, its loop version.
RULES = {
    "atss": (ATSSMatcher, reference_matching.atss_match),
    "iou": (IoUMatcher, reference_matching.iou_match),
    "scale_range": (ScaleRangeMatcher, reference_matching.fcos_match),
    "center_radius": (CenterSamplingMatcher, reference_matching.fcos_match),
    "center_topk": (CenterSamplingMatcher, reference_matching.fcos_match),
    "topk": (TopKMatcher, reference_matching.topk_match),
}
HAS_STRIDES = ("scale_range", "center_radius", "center_topk")


@dataclass
class Scene:
    """Anchors and boxes of some images, and arguments of a rule."""

    anchors: list[Tensor]
    gt_boxes: list[Tensor]
    gt_ignore: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)


def stats_of(matcher, anchors, gt_boxes, gt_ignore=None) -> dict[str, torch.Tensor]:
    """What a matcher reports of a scene."""
    return dict(matcher.assign(build_scene(anchors, gt_boxes, gt_ignore)).stats)


def grid(shapes, strides, sides=((8.0, 8.0),), offset=0.5):
    """Levels of anchors as tensors."""
    return [torch.tensor(level) for level in reference.grid_anchors(shapes, strides, sides, offset)]


def by_loops(rule, anchors, gt_boxes, gt_ignore=None, **options) -> Tensor:
    """(N, R) of the loop version of a rule."""
    levels = [level.tolist() for level in anchors]
    if gt_ignore is None:
        gt_ignore = [torch.zeros(len(boxes), dtype=torch.bool) for boxes in gt_boxes]
    return torch.tensor(
        [
            reference_matching.match_with_regions(
                RULES[rule][1], levels, boxes.tolist(), flags.tolist(), **options
            )
            for boxes, flags in zip(gt_boxes, gt_ignore, strict=True)
        ]
    )


def simple(rule: str, num_levels: int, num_anchors: int = 1, **options) -> DenseMatcher:
    """A rule for levels of strides 8, 16, ... whose arguments suit scenes of small boxes."""
    if rule == "atss":
        options = {"num_anchors": num_anchors, **options}
    if rule in HAS_STRIDES:
        strides = [8 * 2**i for i in range(num_levels)]
        options = {"strides": strides, "range_factor": 2.0, **options}
    if rule == "center_topk":
        options = {"radius": None, "topk": 9 * num_anchors, **options}
    return RULES[rule][0](**options)


def options_of(matcher: DenseMatcher) -> dict[str, Any]:
    """The arguments that ``simple`` gave to a rule, for its loops."""
    names = ("num_anchors", "strides", "range_factor", "radius", "topk")
    return {name: value for name, value in vars(matcher).items() if name in names}


def rule_options(rule: str, strides: list[int], num_anchors: int) -> st.SearchStrategy[dict]:
    """Draws the arguments of a rule."""
    of = st.sampled_from
    inside = {"center_epsilon": of([0.01, 0.0, 1.0]), "inset": of([0.0, 0.5])}
    if rule == "atss":
        return st.fixed_dictionaries(
            {
                "topk": of([1, 2, 4, 9, 15]),
                "num_anchors": st.just(num_anchors),
                "metric": of(["iou", "iou", "giou", "diou"]),
                "std_factor": of([1.0, 1.0, 0.0, 0.5, -1.0]),
                "unbiased_std": st.booleans(),
                **inside,
                "center_epsilon": of([0.01, 0.01, 0.0, None]),
                "min_positives": of([0, 0, 1, 3]),
            }
        )
    if rule == "iou":
        return st.fixed_dictionaries(
            {
                "thresholds": of([(0.4, 0.5), (0.25, 0.25), (0.1, 0.5), (0.5, 1.0)]),
                "allow_low_quality_matches": st.booleans(),
                "low_quality_override": st.booleans(),
                "center_in_gt": st.booleans(),
                **inside,
            }
        )
    if rule == "topk":
        return st.fixed_dictionaries(
            {
                "topk": of([1, 2, 4, 9, 1000]),
                **inside,
                "center_epsilon": of([0.01, 0.01, 0.0, None]),
            }
        )
    sampling = {
        "scale_range": {},
        "center_radius": {"radius": of([0.5, 1.0, 1.5])},
        "center_topk": {"radius": st.none(), "topk": of([1, 2, 4, 9])},
    }
    # Whole multiples of the stride: distances of exactly the end of a range are common.
    return st.fixed_dictionaries(
        {
            "strides": st.just(strides),
            "range_factor": of([8.0, 2.0, 1.0, 0.5]),
            **inside,
            **sampling[rule],
        }
    )


@st.composite
def scenes(draw, rule: str, max_levels: int = 4) -> Scene:
    """Scenes of a rule. Integers make ties, fractions make roundings."""
    num_levels = draw(st.integers(1, max_levels))
    side = st.integers(1, 6 if num_levels < 4 else 3)
    shapes = [(draw(side), draw(side)) for _ in range(num_levels)]
    first_stride = draw(st.sampled_from([4, 8]))
    strides = [first_stride * 2**i for i in range(num_levels)]
    sides = draw(
        st.lists(
            st.tuples(st.sampled_from([0.5, 1, 2, 3.3, 8]), st.sampled_from([1, 2, 2.7, 8])),
            min_size=1,
            max_size=9,
        )
    )
    if num_levels > 1 or max(shapes[0]) > 3:
        sides = sides[:3]
    anchors = grid(shapes, strides, sides, draw(st.sampled_from([0.0, 0.5])))

    if draw(st.booleans()):
        start, length = st.integers(-20, 60), st.integers(-3, 60)
    else:
        start = st.floats(-20, 60, width=32)
        length = st.one_of(st.floats(-3, 60, width=32), st.floats(0, 5, width=32))
    box = st.tuples(start, start, length, length).map(
        lambda b: [float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3])]
    )
    images = draw(st.lists(st.lists(box, max_size=5), min_size=1, max_size=3))
    for boxes in images:
        if boxes and draw(st.booleans()):
            boxes.append(boxes[0])  # identical boxes
    flags = [draw(st.lists(st.booleans(), min_size=len(b), max_size=len(b))) for b in images]
    return Scene(
        anchors,
        [torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) for boxes in images],
        [torch.tensor(f, dtype=torch.bool) for f in flags],
        draw(rule_options(rule, strides, len(sides))),
    )
