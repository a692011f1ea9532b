"""What every sample-selection rule has in common.

Shapes: N images, L levels, Ri anchors of level i, R = sum(Ri), Mn boxes of image n,
M = sum(Mn) boxes of the batch, m boxes of a chunk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes
from fvcore.common.registry import Registry
from torch import Tensor

from ..geometry import box_areas, paired_intersection
from ..nouns import Assignment, Scene
from ..scene import build_scene
from .selection import BACKGROUND, IGNORED, box_chunks, max_per_image_

MATCHER_REGISTRY = Registry("MATCHER")
MATCHER_REGISTRY.__doc__ = """Rules of sample selection by name, for ``MODEL.ATSS.MATCHER.NAME``.

A class registered by ``@MATCHER_REGISTRY.register()`` is a :class:`DenseMatcher`; its keyword
arguments are the keys of the node ``MODEL.ATSS.MY_RULE`` that a cfg may have for ``MyRule``.
"""


class DenseMatcher(ABC):
    """Assigns the anchors of a batch to ground-truth boxes.

    A rule implements :meth:`match` on a :class:`Scene` of plain float32 tensors. Calling the
    matcher accepts Detectron2's structures (or plain tensors). A matcher knows nothing about losses
    or configs, and keeps no state of a call, so threads may share it.

    Attributes:
        needs_predictions: Whether the rule uses ``scene.predictions``; a class attribute.
        selects_boxes_separately: Whether the assignment has ``box_matched_idxs``; likewise.
        gives_soft_targets: Whether the assignment has ``soft``, after a warm-up; likewise.
    """

    needs_predictions = False
    selects_boxes_separately = False
    gives_soft_targets = False

    def __init__(self, *, ignore_ioa_thresh: float | None = None) -> None:
        """
        Args:
            ignore_ioa_thresh: Background anchors become ignored when an ignore region of their
                image covers more than this share of their area (IoA). None: ignore regions get no
                positives, and the anchors in them are background like all others.

        Raises:
            ValueError: The threshold is not in [0, 1).
        """
        if ignore_ioa_thresh is not None and not 0 <= ignore_ioa_thresh < 1:
            raise ValueError(
                f"ignore_ioa_thresh must be None or in [0, 1), got {ignore_ioa_thresh}"
            )
        self.ignore_ioa_thresh = ignore_ioa_thresh

    def bind(self, num_anchors: int, strides: Sequence[int]) -> None:  # noqa: B027 (optional)
        """Sets what the model determines; the owner of a model may call it any number of times.

        A rule that depends on one of the values overrides this method.

        Args:
            num_anchors: A, anchors per location.
            strides: Strides of the L levels, pixels.

        Raises:
            ValueError: The matcher was built for other values, or is bound to another model.
        """

    @torch.no_grad()
    def __call__(
        self,
        anchors: Sequence[Boxes | Tensor],
        gt_boxes: Sequence[Boxes | Tensor],
        gt_ignore: Sequence[Tensor] | None = None,
        grid_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Matches the anchors of a batch.

        Args:
            anchors: L levels of anchors in Detectron2's order (row by row, the anchors of one
                location adjacent), each (Ri, 4) XYXY in pixels, shared by all images.
            gt_boxes: N images, each (Mn, 4) XYXY in pixels.
            gt_ignore: N images, each (Mn,) bool: true for a box that is an ignore region (a
                crowd), not an object. It gets no positives, but still counts in the indices of
                its image. None: there are no such regions.
            grid_sizes: (Hi, Wi) of the feature maps, if the anchors of every level lie on a grid,
                as those of Detectron2's ``DefaultAnchorGenerator`` do. None: rules that need the
                sizes read the anchors, for which the host waits for the device.

        Returns:
            (N, R) int64: index into the boxes of the image, :data:`BACKGROUND` (-1) or
            :data:`IGNORED` (-2).

        Raises:
            ValueError: Anchors or boxes are not (n, 4), or ``gt_ignore`` or ``grid_sizes`` do not
                fit them, or the rule needs predictions, which only :meth:`assign` takes.
        """
        scene = build_scene(anchors, gt_boxes, gt_ignore, grid_sizes)
        matched = self.assign(scene).matched_idxs  # (N, R)
        counts = torch.tensor([len(b) for b in gt_boxes], dtype=torch.int64)
        first_idxs = (torch.cumsum(counts, 0) - counts)[:, None]  # (N, 1)
        first_idxs = first_idxs.to(matched.device, non_blocking=True)
        return torch.where(matched >= 0, matched - first_idxs, matched)

    @torch.no_grad()
    def assign(self, scene: Scene) -> Assignment:
        """Applies the rule outside autocast, and then what all rules have in common.

        Returns:
            An :class:`Assignment` whose ``stats`` also contain ``num_ignored``, anchors per image,
            if ``ignore_ioa_thresh`` is set.

        Raises:
            ValueError: The rule needs predictions, and the scene has none or no classes.
        """
        if self.needs_predictions and scene.predictions is None:
            raise ValueError(
                f"{type(self).__name__} selects by predictions: give scene.predictions to assign()"
            )
        if self.needs_predictions and scene.classes is None:
            raise ValueError(
                "a rule that selects by scores needs the classes of the boxes: build the scene "
                "with gt_classes"
            )
        with torch.autocast(scene.boxes.device.type, enabled=False):
            result = self.match(scene)
            result = result if isinstance(result, Assignment) else Assignment(result)
            matched, stats = result.matched_idxs, result.stats
            if self.ignore_ioa_thresh is not None:
                if scene.regions is not None:
                    covered = self._is_covered(scene, matched)
                    matched = torch.where(covered & (matched == BACKGROUND), IGNORED, matched)
                num_ignored = (matched == IGNORED).sum() / max(scene.num_images, 1)
                stats = {**stats, "num_ignored": num_ignored}
        return result._replace(matched_idxs=matched, stats=stats)

    @abstractmethod
    def match(self, scene: Scene) -> Assignment | Tensor:
        """Applies the rule to a whole batch at once.

        Returns:
            An :class:`Assignment`, or its ``matched_idxs`` (N, R) alone.
        """

    def _is_covered(self, scene: Scene, matched: Tensor) -> Tensor:
        """Returns the mask (N, R) of the anchors that an ignore region of their image covers."""
        anchors = torch.cat(scene.anchors)  # (R, 4)
        covered = torch.zeros_like(matched, dtype=torch.int32)
        areas = box_areas(anchors)  # (R,)
        for rows in box_chunks(scene.boxes, len(anchors)):
            intersection = paired_intersection(anchors, scene.regions[rows, None])  # (m, R)
            is_covered = intersection > self.ignore_ioa_thresh * areas
            max_per_image_(covered, is_covered.int(), scene.image_idxs[rows])
        return covered > 0


def bound_value(matcher: DenseMatcher, name: str, given: Any, determined: Any) -> Any:
    """Returns a value that a model determines, after comparing it with that of the matcher.

    Args:
        matcher: The matcher, for the message.
        name: Name of the value.
        given: The matcher's value; None if it has none yet.
        determined: The model's value.

    Raises:
        ValueError: Both values are set and differ.
    """
    if given is not None and given != determined:
        raise ValueError(
            f"the matcher was built for {name}={given}, but the model has {name}={determined}: "
            f"leave {name} out, and give each model a matcher of its own"
        )
    return determined
