"""Labels the anchors of Detectron2's RPN by our rules, also in the RPN of a built model.

Shapes: N images, L levels of size Hi x Wi, R anchors of an image, M boxes of the batch.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..modeling.anchor_generator import grid_sizes, makes_grids
from ..modeling.labels import look_up
from ..modeling.matchers import DenseMatcher
from ..modeling.nouns import Assignment, DecodedPredictions, Scene, Targets
from ..modeling.scene import scene_of_instances
from ..modeling.training_log import training_iteration
from .view import View

# What replace_rpn_labels sets on an instance.
_REPLACED = ("label_and_sample_anchors", "forward", "__prepare_scriptable__")


def find_rpn(model: object) -> RPN | None:
    """Returns the RPN of an R-CNN, or the model itself if it is one; otherwise None."""
    rpn = getattr(model, "proposal_generator", model)
    return rpn if isinstance(rpn, RPN) else None


def check_rpn_rule(rpn: RPN, matcher: object, *, allow_predictions: bool = False) -> None:
    """Checks that a rule fits an RPN.

    Args:
        rpn: The RPN.
        matcher: The rule.
        allow_predictions: Whether the rule may look at predictions.

    Raises:
        TypeError: It is not one of our rules.
        ValueError: It selects by predictions, for which Detectron2's labeling has no room, or the
            RPN's anchors are rotated or differ in number between levels.
    """
    if not isinstance(matcher, DenseMatcher):
        raise TypeError(f"the matcher must be a DenseMatcher, got {type(matcher).__name__}")
    if matcher.needs_predictions and not allow_predictions:
        raise ValueError(
            f"{type(matcher).__name__} selects by predictions, for which Detectron2's "
            "label_and_sample_anchors has no room: use ATSSRPN with a criterion"
        )
    generator = rpn.anchor_generator
    if getattr(generator, "box_dim", 4) != 4:
        raise ValueError(f"rules compare upright boxes, but {type(rpn).__name__} rotates them")
    if len(set(generator.num_anchors)) != 1:
        raise ValueError(
            "a rule needs as many anchors per location on every level, but the anchor generator "
            f"gives {generator.num_anchors}"
        )


def replace_rpn_labels(
    rpn: RPN,
    matcher: DenseMatcher | type[DenseMatcher] | None,
    anchor_scale: float | None,
    options: dict[str, Any],
) -> None:
    """Replaces the sample selection of an RPN, or restores its own; see :func:`use_matcher`."""
    if matcher is None:
        for name in _REPLACED:
            vars(rpn).pop(name, None)
        return
    if isinstance(getattr(rpn, "anchor_matcher", None), DenseMatcher):
        raise TypeError(
            f"{type(rpn).__name__} has a matcher of its own: set anchor_matcher of the proposal "
            "generator"
        )
    if anchor_scale is not None:
        raise ValueError(
            f"anchor_scale={anchor_scale} is for detectors with one anchor per location; the "
            "matcher of an RPN sees its anchors as they are: leave it out"
        )
    matcher = matcher(**options) if isinstance(matcher, type) else matcher
    check_rpn_rule(rpn, matcher)
    matcher.bind(rpn.anchor_generator.num_anchors[0], tuple(rpn.anchor_generator.strides))
    # Instance attributes hide the methods of the class. They are not modules, so state_dict gets no
    # keys.
    rpn.label_and_sample_anchors = functools.partial(label_and_sample, rpn, matcher)
    for name in _REPLACED[1:]:
        vars(rpn).pop(name, None)
    if type(rpn).forward is RPN.forward and makes_grids(rpn.anchor_generator):
        rpn.forward = functools.partial(_forward_on_grids, rpn)
        rpn.__prepare_scriptable__ = functools.partial(_original, rpn)


def _forward_on_grids(
    rpn: RPN,
    images: ImageList,
    features: dict[str, Tensor],
    gt_instances: list[Instances] | None = None,
) -> tuple[list[Instances], dict[str, Tensor]]:
    """Calls the class's ``forward`` with the sizes of the maps known to the labeling.

    Without the sizes, the matcher would read the anchors and make the host wait for a GPU.
    """
    if not rpn.training:
        return type(rpn).forward(rpn, images, features, gt_instances)
    sizes = grid_sizes(rpn.anchor_generator, [features[name] for name in rpn.in_features])
    label = functools.partial(rpn.label_and_sample_anchors, grid_sizes=sizes)
    view = View(rpn, label_and_sample_anchors=label)
    return type(rpn).forward(view, images, features, gt_instances)


def _original(rpn: RPN) -> nn.Module:
    """Returns what ``torch.jit.script`` compiles, where labels play no part."""
    twin = copy.copy(rpn)
    twin.__dict__ = {name: x for name, x in vars(rpn).items() if name not in _REPLACED}
    return twin


@torch.no_grad()
def label_and_sample(
    rpn: RPN,
    matcher: DenseMatcher,
    anchors: list[Boxes],
    gt_instances: list[Instances],
    grid_sizes: Sequence[tuple[int, int]] | None = None,
    *,
    log: Callable[[Assignment, Scene], None] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Works as ``RPN.label_and_sample_anchors``: labels by our rule, sampling by Detectron2.

    Args:
        rpn: The RPN that draws from the labels.
        matcher: The rule.
        anchors: L levels of anchors.
        gt_instances: See :func:`rpn_targets`, as for the rest.

    Returns:
        N labels (R,) int8: 1 object, 0 background, -1 not trained; and N tensors of matched boxes
        (R, 4), which contain the anchor itself where it has no match.
    """
    targets = rpn_targets(rpn, matcher, anchors, gt_instances, grid_sizes, log=log)
    if targets.soft is not None:
        raise TypeError(
            f"{type(matcher).__name__} gives soft targets, for which Detectron2's losses have no "
            "room: use ATSSRPN with a criterion"
        )
    # Ours are 0 for the class "object", 1 for background.
    labels = torch.where(targets.labels < 0, -1, 1 - targets.labels).to(torch.int8)
    # Drawn image by image, in the order of the random numbers that Detectron2 would use.
    return [rpn._subsample_labels(x) for x in labels], list(targets.boxes)


def rpn_targets(
    rpn: RPN,
    matcher: DenseMatcher,
    anchors: list[Boxes],
    gt_instances: list[Instances],
    grid_sizes: Sequence[tuple[int, int]] | None = None,
    *,
    predictions: DecodedPredictions | None = None,
    log: Callable[[Assignment, Scene], None] | None = None,
) -> Targets:
    """Finds the targets of all anchors of an RPN; all objects have class 0 of 1.

    Args:
        rpn: The RPN, with ``anchor_boundary_thresh``.
        matcher: The rule.
        anchors: L levels of anchors.
        gt_instances: N images with ``gt_boxes`` and, optionally, ``gt_ignore``.
        grid_sizes: (Hi, Wi) of the L levels, if the anchors lie on grids.
        predictions: For rules that need them.
        log: Is called with the assignment and the scene.
    """
    scene = scene_of_instances(
        [a.tensor for a in anchors],
        [_of_one_class(x) for x in gt_instances],
        grid_sizes,
        num_classes=1,
        predictions=predictions,
        iteration=training_iteration(),
    )
    assignment = matcher.assign(scene)
    if log is not None:
        log(assignment, scene)
    targets = look_up(assignment, scene, num_classes=1)
    if rpn.anchor_boundary_thresh >= 0:  # a legacy option of Detectron2
        boxes = Boxes(targets.anchors)
        is_inside = torch.stack(
            [boxes.inside_box(x.image_size, rpn.anchor_boundary_thresh) for x in gt_instances]
        )  # (N, R)
        for name in ("labels", "box_labels"):
            labels = getattr(targets, name)
            if labels is not None:
                targets = targets._replace(**{name: torch.where(is_inside, labels, -1)})
    return targets


def _of_one_class(instances: Instances) -> Instances:
    boxes = instances.gt_boxes
    classes = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    one = Instances(instances.image_size, gt_boxes=boxes, gt_classes=classes)
    if instances.has("gt_ignore"):
        one.gt_ignore = instances.gt_ignore
    return one
