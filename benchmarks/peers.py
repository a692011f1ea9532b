"""Sample selection of other libraries, and how to convert their results to ours.

Shapes: N images, L levels, R anchors of all levels, Mn boxes of image n.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor
from torchvision.models.detection import _utils as det_utils
from torchvision.ops import box_iou

from atss_d2 import ATSSMatcher, CenterSamplingMatcher, IoUMatcher
from atss_d2.modeling.matchers import BACKGROUND, IGNORED, DenseMatcher
from atss_d2.modeling.scene import build_scene

from . import scenes
from .published_atss import match_images

OURS = "ATSS"
FALLBACK = "ATSS, anchors on no grid"
PUBLISHED = "ATSS as published"
MMDET = "mmdetection ATSS"
D2_RETINANET = "Detectron2 RetinaNet's rule"
D2_FCOS = "Detectron2 FCOS's rule"
TV_RETINANET = "torchvision RetinaNet's rule"
IOU = "IoUMatcher"
CENTER_SAMPLING = "CenterSamplingMatcher"
NO_MMDET = f"{MMDET}: skipped, mmdet is not installed."


@dataclass(frozen=True)
class AssignmentScene:
    """Images of one size, with boxes."""

    image_size: tuple[int, int]
    gt_boxes: list[Boxes]
    device: torch.device

    @classmethod
    def of(
        cls, image_size: tuple[int, int], num_boxes: int, device: torch.device, num_images: int = 2
    ) -> AssignmentScene:
        """Builds a scene with ``num_boxes`` random boxes per image."""
        boxes = [scenes.random_boxes(num_boxes, image_size, seed) for seed in range(num_images)]
        return cls(image_size, [Boxes(b.to(device)) for b in boxes], device)

    def anchors(self, scale: float = scenes.ATSS_SCALE) -> list[Boxes]:
        """Returns L levels of anchors on the device."""
        return [a.to(self.device) for a in scenes.anchors(self.image_size, scale)]


@dataclass(frozen=True)
class Assignment:
    """A way to assign the anchors of a scene.

    Args:
        name: Its name in tables and pictures.
        run: The timed call.
        read: Converts the result of ``run`` to ours: (N, R) index, -1 for background, -2 for
            ignored.
    """

    name: str
    run: Callable[[], object]
    read: Callable[[object], Tensor]


def ours(scene: AssignmentScene, matcher: DenseMatcher | None = None, name: str = OURS):
    """Returns one of our rules on the anchors of ATSS, whose grids are known, as in training.

    There it returns indices into the concatenated boxes of all images.
    """
    matcher = ATSSMatcher() if matcher is None else matcher
    anchors, sizes = scene.anchors(), scenes.level_sizes(scene.image_size)
    counts = torch.tensor([len(boxes) for boxes in scene.gt_boxes], device=scene.device)
    first = (counts.cumsum(0) - counts)[:, None]  # (N, 1)
    return Assignment(
        name,
        lambda: matcher.assign(build_scene(anchors, scene.gt_boxes, None, sizes)).matched_idxs,
        lambda matched: torch.where(matched >= 0, matched - first, matched),
    )


def fallback(scene: AssignmentScene) -> Assignment:
    """Returns ATSS on the same anchors in random order, in which no grid is recognizable."""
    matcher = ATSSMatcher()
    generator = torch.Generator().manual_seed(0)
    anchors, places, first = [], [], 0
    for level in scene.anchors():
        order = torch.randperm(len(level), generator=generator).to(scene.device)
        anchors.append(level[order])
        places.append(first + order)
        first += len(level)
    place = torch.cat(places)
    return Assignment(
        FALLBACK,
        lambda: matcher(anchors, scene.gt_boxes),
        lambda result: torch.empty_like(result).index_copy_(1, place, result),
    )


def published(scene: AssignmentScene) -> Assignment:
    """Returns the published algorithm, see :mod:`benchmarks.published_atss`."""
    levels = [a.tensor for a in scene.anchors()]
    boxes = [b.tensor for b in scene.gt_boxes]
    return Assignment(PUBLISHED, lambda: match_images(levels, boxes), lambda result: result)


def mmdetection(scene: AssignmentScene) -> Assignment | None:
    """Returns mmdetection's assigner; None if it is not installed."""
    try:
        from mmdet.models.task_modules.assigners import ATSSAssigner
        from mmengine.structures import InstanceData
    except ImportError:
        return None
    levels = [a.tensor for a in scene.anchors()]
    priors, counts = InstanceData(priors=torch.cat(levels)), [len(level) for level in levels]
    images = [
        InstanceData(bboxes=b.tensor, labels=b.tensor.new_zeros(len(b), dtype=torch.int64))
        for b in scene.gt_boxes
    ]
    assigner = ATSSAssigner(topk=9)
    return Assignment(
        MMDET,
        lambda: [assigner.assign(priors, counts, image) for image in images],
        # index of the box + 1, 0 for background
        lambda results: torch.stack([result.gt_inds - 1 for result in results]),
    )


def retinanet_rule(scene: AssignmentScene) -> Assignment:
    """Returns the rule of Detectron2's RetinaNet, image by image."""
    anchors = Boxes.cat(scene.anchors())
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)

    def read(results) -> Tensor:
        return torch.stack(
            [
                torch.where(labels == 1, idxs, torch.where(labels == 0, BACKGROUND, IGNORED))
                for idxs, labels in results
            ]
        )

    return Assignment(
        D2_RETINANET,
        lambda: [matcher(pairwise_iou(boxes, anchors)) for boxes in scene.gt_boxes],
        read,
    )


def torchvision_rule(scene: AssignmentScene) -> Assignment:
    """Returns the rule of torchvision's RetinaNet, image by image."""
    anchors = Boxes.cat(scene.anchors()).tensor
    matcher = det_utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return Assignment(
        TV_RETINANET,
        lambda: [matcher(box_iou(boxes.tensor, anchors)) for boxes in scene.gt_boxes],
        torch.stack,
    )


def fcos_rule(scene: AssignmentScene) -> Assignment:
    """Returns the rule of Detectron2's FCOS, image by image."""
    anchors = scene.anchors(scenes.POINT_SCALE)
    # The only part of the model that the rule reads.
    match = functools.partial(FCOS._match_anchors, SimpleNamespace(center_sampling_radius=1.5))

    def read(results) -> Tensor:
        return torch.stack([torch.where(best < 1e-5, BACKGROUND, idxs) for best, idxs in results])

    return Assignment(
        D2_FCOS,
        lambda: [match(boxes, anchors).max(dim=0) for boxes in scene.gt_boxes],
        read,
    )


def atss_assignments(scene: AssignmentScene) -> list[Assignment]:
    """Returns all implementations of ATSS, ours first."""
    found = [ours(scene), fallback(scene), published(scene), mmdetection(scene)]
    return [assignment for assignment in found if assignment is not None]


def same_rule_assignments(scene: AssignmentScene) -> list[list[Assignment]]:
    """Returns implementations of the other rules, one list per rule, ours first."""
    return [
        [ours(scene, IoUMatcher(), IOU), retinanet_rule(scene), torchvision_rule(scene)],
        [
            ours(scene, CenterSamplingMatcher(center_epsilon=0.0), CENTER_SAMPLING),
            fcos_rule(scene),
        ],
    ]


def count_different(assignments: list[Assignment]) -> dict[str, int]:
    """Counts the anchors that each peer assigns differently from the first.

    Raises:
        RuntimeError: The number is more than rounding can explain: it is not the same rule.
    """
    expected = assignments[0].read(assignments[0].run())
    num_matched = int((expected != BACKGROUND).sum())
    found = {}
    for assignment in assignments[1:]:
        labels = assignment.read(assignment.run())
        found[assignment.name] = int((labels != expected).sum())
        if found[assignment.name] > 0.01 * num_matched:
            raise RuntimeError(
                f"{assignment.name} differs from {assignments[0].name} in "
                f"{found[assignment.name]} anchors, of {num_matched} that are not background"
            )
    return found
