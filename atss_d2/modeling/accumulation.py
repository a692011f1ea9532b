"""Totals that normalize the losses of a batch, counted before any of it goes through the network.

The losses of ATSS are divided by the number of positives of the whole batch. If a batch is trained
in micro-batches, that number has to be known before the first of them; labels need only the sizes
of the images and their boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from .anchor_generator import grid_sizes
from .atss import ATSS
from .criterion import Criterion
from .labels import look_up
from .nouns import Targets
from .scene import scene_of_instances
from .training_log import training_iteration

# Methods of a model that define its losses; one that overrides them may add others.
_LOSSES = ("forward_training", "label_anchors", "losses")


def knows_totals(model: nn.Module) -> bool:
    """Returns whether :func:`batch_totals` can count for a model: labels follow from boxes alone.

    It cannot for other models than ATSS, rules that look at predictions or select the samples of
    boxes separately, criteria without :meth:`Criterion.totals`, and subclasses with other losses.
    """
    if not isinstance(model, ATSS) or model.matcher.needs_predictions:
        return False
    if any(getattr(type(model), name) is not getattr(ATSS, name) for name in _LOSSES):
        return False
    if model.criterion.totals_need_predictions or model.matcher.selects_boxes_separately:
        return False
    # The class that defines what is computed, or one derived from it, must also say what it counts.
    kinds = type(model.criterion).__mro__
    computes = next(kind for kind in kinds if "compute" in vars(kind))
    counts = next(kind for kind in kinds if "totals" in vars(kind))
    return counts is not Criterion and issubclass(counts, computes)


@torch.no_grad()
def predicts_quality(model: ATSS) -> bool:
    """Returns whether the head predicts a quality, by running it on maps of zeros."""
    shapes = model.backbone.output_shape()
    strides = model.anchor_generator.strides
    features = [
        torch.zeros(
            1, shapes[name].channels, *[2 * max(strides) // stride] * 2, device=model.device
        )
        for name, stride in zip(model.head_in_features, strides)
    ]
    was_training = model.head.training
    try:
        return len(model.head.eval()(features)) == 3
    finally:
        model.head.train(was_training)


@torch.no_grad()
def batch_totals(
    model: ATSS, micro_batches: Sequence[Sequence[Mapping[str, Any]]], *, with_quality: bool
) -> list[Tensor]:
    """Counts what normalizes the losses of a batch, without its predictions.

    The feature maps of a stride s are taken to be ceil(size / s) large.

    Args:
        model: A model for which :func:`knows_totals`.
        micro_batches: The batch of this process, in parts.
        with_quality: Whether the head predicts a quality.

    Returns:
        0-dim totals of this process, for :meth:`Criterion.normalized_by`.
    """
    model._bind_matcher()
    model._bind_criterion()
    totals = [
        model.criterion.totals(_targets(model, images), with_quality=with_quality)
        for images in micro_batches
    ]
    return [torch.stack(parts).sum() for parts in zip(*totals)]


def _targets(model: ATSS, images: Sequence[Mapping[str, Any]]) -> Targets:
    """Labels the anchors of a micro-batch as the model does."""
    padded = ImageList.from_tensors(
        [x["image"].to("meta") for x in images],
        model.backbone.size_divisibility,
        padding_constraints=model.backbone.padding_constraints,
    )
    height, width = padded.tensor.shape[-2:]
    one = torch.zeros((), device=model.device)
    maps = [  # without memory: only their sizes count
        one.expand(len(images), 1, math.ceil(height / stride), math.ceil(width / stride))
        for stride in model.anchor_generator.strides
    ]
    scene = scene_of_instances(
        [x.tensor for x in model.anchor_generator(maps)],
        [x["instances"].to(model.device) for x in images],
        grid_sizes(model.anchor_generator, maps),
        num_classes=model.num_classes,
        iteration=training_iteration(),
    )
    return look_up(model.matcher.assign(scene), scene, num_classes=model.num_classes)
