"""Replaces the sample selection of a built model.

Shapes: N images, L levels of Ri anchors, R = sum(Ri), K classes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..modeling.anchor_generator import grid_sizes, makes_grids
from ..modeling.atss import ATSS
from ..modeling.fit import check_parts
from ..modeling.geometry import box_centers, least_side_distance
from ..modeling.labels import look_up
from ..modeling.matchers import DenseMatcher
from ..modeling.scene import scene_of_instances
from ..modeling.training_log import training_iteration
from .rpn_labels import find_rpn, replace_rpn_labels
from .view import View

# Side, in strides, of the anchors that the paper compares with boxes. Detectron2's FCOS has
# anchors of side 1, which stand for points.
_FCOS_ANCHOR_SCALE = 8.0
# A logit whose focal loss as background is 0 in any precision.
_SURE_BACKGROUND = -100.0
# Attributes that a detector must have.
_PARTS = (
    "label_anchors",
    "anchor_generator",
    "backbone",
    "box2box_transform",
    "head",
    "head_in_features",
    "num_classes",
)


def replace_label_anchors(
    model: nn.Module,
    matcher: DenseMatcher | type[DenseMatcher] | None,
    anchor_scale: float | None,
    options: dict[str, Any],
) -> nn.Module:
    """Replaces one model's sample selection, or restores its own; see :func:`use_matcher`."""
    rpn = find_rpn(model)
    if rpn is not None:
        replace_rpn_labels(rpn, matcher, anchor_scale, options)
        return model
    _check_detector(model)
    if matcher is None:
        for name in ("label_anchors", "losses", "forward_training"):
            vars(model).pop(name, None)
        return model
    generator = model.anchor_generator
    if isinstance(matcher, type):
        matcher = matcher(**options)
    if not isinstance(matcher, DenseMatcher):
        raise TypeError(f"matcher must be a DenseMatcher, got {type(matcher).__name__}")
    if matcher.needs_predictions:
        raise TypeError(
            f"{type(matcher).__name__} selects by predictions, for which label_anchors of "
            f"{type(model).__name__} has no room: use it with ATSS"
        )
    check_parts(
        backbone_shapes=model.backbone.output_shape(),
        head_in_features=model.head_in_features,
        anchor_generator=generator,
        head=model.head,
        matcher=matcher,
        box2box_transform=model.box2box_transform,
        num_classes=model.num_classes,
    )
    is_fcos = isinstance(model, FCOS)
    if anchor_scale is None and is_fcos:
        anchor_scale = _FCOS_ANCHOR_SCALE
    # Instance attributes hide the methods of the class. They are not modules, so state_dict gets no
    # keys.
    model.label_anchors = LabelAnchors(
        matcher,
        num_classes=model.num_classes,
        sides=None if anchor_scale is None else _sides(generator, anchor_scale),
        centers_inside=is_fcos,
    )
    if is_fcos:
        model.losses = functools.partial(_losses_without_ignored, model)
    if _labels_grids(model):
        model.forward_training = functools.partial(
            _forward_training_on_grids, model, model.label_anchors
        )
    else:
        vars(model).pop("forward_training", None)
    return model


def _check_detector(model: object) -> None:
    if isinstance(model, ATSS):
        raise TypeError("ATSS has a matcher of its own: set model.matcher")
    missing = [name for name in _PARTS if not hasattr(model, name)]
    if missing:
        raise TypeError(
            "use_matcher works with Detectron2's RetinaNet, FCOS and R-CNNs with an RPN, and with "
            f"detectors like them, got {type(model).__name__}, which has no {', '.join(missing)}"
        )


def _labels_grids(model: nn.Module) -> bool:
    """Returns whether a model labels exactly the anchors that its generator makes for its maps."""
    detectron2s = (RetinaNet.forward_training, FCOS.forward_training)
    if getattr(type(model), "forward_training", None) not in detectron2s:
        return False  # a subclass may label other anchors
    return makes_grids(model.anchor_generator)


def _sides(generator: nn.Module, anchor_scale: float) -> list[float]:
    if anchor_scale <= 0:
        raise ValueError(f"anchor_scale must be > 0, got {anchor_scale}")
    if set(generator.num_anchors) != {1}:
        raise ValueError(
            f"anchor_scale={anchor_scale} needs one anchor per location, but the anchor generator "
            f"gives {generator.num_anchors} on its levels"
        )
    return [anchor_scale * stride for stride in generator.strides]


class LabelAnchors:
    """``label_anchors`` for Detectron2's RetinaNet and FCOS, implemented by a matcher.

    It holds no reference to the model, so a copy of the model does not refer to the original.
    """

    def __init__(
        self,
        matcher: DenseMatcher,
        *,
        num_classes: int,
        sides: Sequence[float] | None = None,
        centers_inside: bool = False,
    ) -> None:
        """
        Args:
            matcher: The rule.
            num_classes: K, the label of background.
            sides: Sides of the square anchors that the matcher sees, one per level, in pixels.
                Default: the anchors as they are.
            centers_inside: Whether positives whose center lies outside their box are ignored.
        """
        self.matcher = matcher
        self.num_classes = num_classes
        self.sides = sides
        self.centers_inside = centers_inside

    @torch.no_grad()
    def __call__(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        grid_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels the anchors of a batch.

        Args:
            anchors: L levels of anchors.
            gt_instances: N images with ``gt_boxes`` and ``gt_classes``; boxes marked by the
                optional field ``gt_ignore`` (bool) are ignore regions, which are never matched.
            grid_sizes: (Hi, Wi) of the L levels, if the anchors lie on grids.

        Returns:
            N labels (R,): class, K for background, -1 for ignored anchors; and N tensors of matched
            boxes (R, 4), which contain the anchor itself where it has no match.
        """
        seen = [a.tensor for a in anchors]
        all_anchors = torch.cat(seen)  # (R, 4)
        if self.sides is not None:
            seen = [_squares(a, side) for a, side in zip(seen, self.sides)]
        scene = scene_of_instances(
            seen,
            gt_instances,
            grid_sizes,
            num_classes=self.num_classes,
            iteration=training_iteration(),
        )
        assignment = self.matcher.assign(scene)
        if assignment.soft is not None:
            raise TypeError(
                f"{type(self.matcher).__name__} gives soft targets, for which the losses of "
                "Detectron2's detectors have no room: use it with ATSS"
            )
        targets = look_up(assignment, scene, num_classes=self.num_classes, anchors=all_anchors)
        gt_labels, boxes = targets.labels, targets.boxes
        if self.centers_inside:  # background is matched to itself, so its center is inside
            is_inside = least_side_distance(box_centers(all_anchors), boxes) > 0
            gt_labels = torch.where(is_inside, gt_labels, -1)
        return list(gt_labels), list(boxes)


def _squares(anchors: Tensor, side: float) -> Tensor:
    centers = box_centers(anchors)  # (Ri, 2)
    return torch.cat((centers - side / 2, centers + side / 2), dim=1)


def _forward_training_on_grids(
    model: nn.Module,
    label_anchors: LabelAnchors,
    images: ImageList,
    features: list[Tensor],
    *args: Any,
) -> dict[str, Tensor]:
    """Calls the class's ``forward_training`` with the sizes of the maps known to ``label_anchors``.

    Without the sizes, the matcher would read the anchors and make the host wait for a GPU.
    """
    sizes = grid_sizes(model.anchor_generator, features)
    view = View(model, label_anchors=functools.partial(label_anchors, grid_sizes=sizes))
    return type(model).forward_training(view, images, features, *args)


def _losses_without_ignored(
    model: FCOS,
    anchors: list[Boxes],
    pred_logits: list[Tensor],
    gt_labels: list[Tensor],
    *args: Any,
) -> dict[str, Tensor]:
    """Computes ``FCOS.losses`` for labels that may be -1; those anchors get no loss."""
    is_ignored = torch.stack(gt_labels) < 0  # (N, R)
    levels = is_ignored[..., None].split([x.shape[1] for x in pred_logits], dim=1)
    pred_logits = [torch.where(m, _SURE_BACKGROUND, x) for m, x in zip(levels, pred_logits)]
    gt_labels = [torch.where(x < 0, model.num_classes, x) for x in gt_labels]
    return type(model).losses(model, anchors, pred_logits, gt_labels, *args)
