"""Chooses image size, anchors, batch, learning rate and schedule from a data set's statistics.

The numbers come from experiments with the embedded MobileNetV2 on drawn scenes and photographs of
tree crowns; for the R-50 they are scaled from the paper's COCO recipe. Each choice comes with a
sentence that gives its reason, which becomes a comment in the generated config.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from .statistics import Statistics


@dataclass(frozen=True)
class Model:
    """Properties of a model offered by ``start_project.py`` that the choices depend on.

    Args:
        config: Name for ``get_config``.
        strides: Strides of its levels.
        sides: Shorter side (usual, maximum) of its input images, in pixels.
        enlarges: Whether images are always enlarged to the usual side, or only for small objects.
        lr: Learning rate for a batch of one image.
        seconds: Training time per megapixel on two CPU cores, including evaluations
            (docs/custom_dataset.md has the measurement). None if training on a CPU is too slow.
    """

    config: str
    strides: tuple[int, ...]
    sides: tuple[int, int]
    enlarges: bool
    lr: float
    seconds: float | None


MODELS = {
    "mobilenetv2": Model(
        config="custom/atss_mobilenetv2",
        strides=(8, 16, 32, 64),
        sides=(320, 512),
        enlarges=False,
        lr=1e-3 / 4,
        seconds=1.25,
    ),
    "r50": Model(
        config="custom/atss_R_50",
        strides=(8, 16, 32, 64, 128),
        sides=(800, 1024),
        enlarges=True,
        lr=0.01 / 16,
        seconds=None,
    ),
}

_SMALLEST = 16.0  # px, two cells of the finest level: desired minimum size of small objects
_MAX_ENLARGEMENT = 2.0
_LOST = 8.0  # px, one cell of the finest level: smaller objects are rarely found
_EVALUATIONS = 10
_MEGAPIXELS = 370.0  # to train on with a CPU: takes about eight minutes
_STEP = 32  # sides are multiples of this


@dataclass(frozen=True)
class Settings:
    """The chosen settings, with their reasons.

    Args:
        model: A key of :data:`MODELS`.
        short_side: Shorter side of test images, pixels.
        max_size: Maximum longer side of test images.
        train_short_sides: Range of the shorter side in training.
        train_max_size: Maximum longer side in training.
        anchor_scale: Anchor side as a multiple of the stride.
        batch: Images per step.
        lr: Learning rate.
        max_iter: Number of steps.
        eval_period: Steps between evaluations.
        reasons: One sentence per choice, by field name.
    """

    model: str
    short_side: int
    max_size: int
    train_short_sides: tuple[int, int]
    train_max_size: int
    anchor_scale: int
    batch: int
    lr: float
    max_iter: int
    eval_period: int
    reasons: dict[str, str]


def choose(
    model: str,
    train: Statistics,
    val: Statistics,
    *,
    has_gpu: bool,
    is_trained: bool = False,
) -> Settings:
    """Chooses the settings for a model.

    Args:
        model: A key of :data:`MODELS`.
        train: The training part, with at least one object.
        val: The validation part.
        has_gpu: Whether training will run on a GPU.
        is_trained: Whether training starts from a trained detector, whose anchors are then kept.
    """
    spec, reasons = MODELS[model], {}
    short_side, max_size, reasons["short_side"] = _choose_size(spec, train)
    scale = resize_factors(train, short_side, max_size)[train.image_idxs]  # (M,)
    sizes = train.sizes * scale
    if is_trained:
        anchor_scale, reasons["anchor_scale"] = 8, "the anchors that the weights were trained with"
    else:
        anchor_scale, reasons["anchor_scale"] = _choose_anchors(spec, sizes)

    num = int((train.objects_per_image > 0).sum())
    if has_gpu:
        batch, why = 8, "images a step fit a GPU of 16 GB"
    elif short_side <= 384:
        batch, why = 4, "images a step: on a CPU larger batches cost time and gain little"
    else:
        batch, why = 2, f"images a step: at {short_side} px more would take long on a CPU"
    if batch > num:
        batch, why = num, "images a step: there are no more"
    lr = round(spec.lr * batch, 8)
    reasons["batch"] = f"{batch} {why}; the learning rate is in proportion"

    factors = resize_factors(train, short_side, max_size)
    megapixels = float(np.mean(train.heights * train.widths * factors**2)) / 1e6
    max_iter, reasons["max_iter"] = _choose_schedule(spec, num, batch, megapixels, has_gpu=has_gpu)
    eval_period = math.ceil(max_iter / _EVALUATIONS / 10) * 10
    # With a large validation set, frequent evaluations would take most of the time.
    share = (val.num_images / 3) * _EVALUATIONS / (max_iter * batch)
    if share > 0.5:
        eval_period = min(math.ceil(eval_period * share / 0.5 / 10) * 10, max_iter)
    evaluations = max(round(max_iter / eval_period), 1)
    reasons["eval_period"] = f"about {evaluations} evaluations of {val.num_images} images"
    return Settings(
        model=model,
        short_side=short_side,
        max_size=max_size,
        train_short_sides=(_multiple(0.8 * short_side), _multiple(1.2 * short_side)),
        train_max_size=_multiple(1.2 * max_size),
        anchor_scale=anchor_scale,
        batch=batch,
        lr=lr,
        max_iter=max_iter,
        eval_period=eval_period,
        reasons=reasons,
    )


def resize_factors(statistics: Statistics, short_side: int, max_size: int) -> np.ndarray:
    """Returns the factor (N,) by which ``ResizeShortestEdge`` scales the sides of each image."""
    short = np.minimum(statistics.heights, statistics.widths)
    long = np.maximum(statistics.heights, statistics.widths)
    return np.minimum(short_side / short, max_size / long)


def _choose_size(spec: Model, train: Statistics) -> tuple[int, int, str]:
    """Chooses the smallest size, from the usual up, at which small objects are large enough."""
    usual, largest = spec.sides
    short = np.minimum(train.heights, train.widths)
    long = np.maximum(train.heights, train.widths)
    side = float(np.median(short))
    aspect = float(np.quantile(long / short, 0.95))
    enlarge = _MAX_ENLARGEMENT if spec.enlarges else 1.0
    least = _multiple(min(usual, enlarge * side))
    most = max(_multiple(min(largest, _MAX_ENLARGEMENT * side)), least)
    best = -1.0
    for candidate in range(least, most + 1, _STEP):
        # Panoramas may keep their aspect ratio up to the area of the largest 2:1 image.
        limit = _multiple(min(candidate * aspect, 2 * largest**2 / candidate))
        resized = train.sizes * resize_factors(train, candidate, limit)[train.image_idxs]
        if np.median(resized) <= best:
            break  # the limit on the longer side shrinks from here on
        chosen, max_size, sizes, best = candidate, limit, resized, np.median(resized)
        if np.quantile(sizes, 0.1) >= _SMALLEST and np.median(sizes) >= 2 * _SMALLEST:
            break
    small, median = np.quantile(train.sizes, [0.1, 0.5])
    factor = chosen / side
    if aspect > 2:  # the longer side may be the limit
        factor = float(np.median(resize_factors(train, chosen, max_size)))
    how = "enlarged" if factor > 1.05 else "reduced" if factor < 0.95 else "kept"
    reason = (
        f"images measure {np.median(train.widths):.0f} x {np.median(train.heights):.0f} px "
        f"(median), objects {median:.0f} px, 10 % of them under {small:.0f} px: {how}"
    )
    if how != "kept":
        reason += f" {factor:.2g} times, the median object becomes {np.median(sizes):.0f} px"
    return chosen, max_size, reason


def _choose_anchors(spec: Model, sizes: np.ndarray) -> tuple[int, str]:
    """Chooses anchors of 8 x stride as in the paper, or 4 x stride if most objects are smaller.

    On tree crowns of 33 px (median), 150 steps gave 12.7 AP with 4 x stride, 9.8 with 8 x stride.
    """
    quarter = float(np.quantile(sizes, 0.25))
    median = float(np.median(sizes))
    scale = 8 if median >= 6 * spec.strides[0] else 4
    low, high = scale * spec.strides[0], scale * spec.strides[-1]
    reason = (
        f"a quarter of the resized objects is under {quarter:.0f} px, half under {median:.0f}: "
        f"anchors of {low} to {high} px, {scale} x the strides"
    )
    return scale, reason + (", as in the paper" if scale == 8 else "")


def _choose_schedule(
    spec: Model, num_images: int, batch: int, megapixels: float, *, has_gpu: bool
) -> tuple[int, str]:
    """Chooses more epochs for fewer images; with thousands, about 12 as in the paper.

    Args:
        spec: The model.
        num_images: Number of images with boxes.
        batch: Images per step.
        megapixels: Average size of an image.
        has_gpu: Whether training will run on a GPU.
    """
    views = 8000.0
    if not has_gpu:
        views = float(np.clip(_MEGAPIXELS / megapixels, 1000, 4000))
    # Up to a few hundred images share the views that fit in a short training run.
    views = max(min(100 * num_images, views), 12 * (num_images - 200))
    low, high = (500, 90_000) if has_gpu else (300, 20_000)
    max_iter = int(np.clip(round(views / batch / 20) * 20, low, high))
    times = max_iter * batch / num_images
    reason = f"every image with boxes ({num_images}) is seen {times:.3g} times"
    if not has_gpu and spec.seconds is not None:
        minutes = max_iter * batch * megapixels * spec.seconds / 60
        reason += f", in about {minutes:.0f} minutes on two CPU cores"
    return max_iter, reason


def median_factor(statistics: Statistics, settings: Settings) -> float:
    """Returns the median factor by which the sides of images are scaled."""
    factors = resize_factors(statistics, settings.short_side, settings.max_size)
    return float(np.median(factors))


def anchor_sides(settings: Settings) -> list[int]:
    """Returns the sides of the anchors, in pixels of the resized image."""
    return [settings.anchor_scale * stride for stride in MODELS[settings.model].strides]


def find_too_large(
    statistics: Statistics, settings: Settings
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Finds images in which resizing loses objects, so that tiles would find more of them.

    Returns:
        Indices of the images in which resizing shrinks at least a quarter of the objects from at
        least one cell of the finest level (8 px) to less; and the median object size (N,) of each
        image before and after resizing, NaN if it has no objects.
    """
    factors = resize_factors(statistics, settings.short_side, settings.max_size)
    before = np.full(statistics.num_images, np.nan)
    order = np.argsort(statistics.image_idxs, kind="stable")
    starts = np.searchsorted(statistics.image_idxs[order], np.arange(statistics.num_images + 1))
    found = []
    for i, (start, stop) in enumerate(itertools.pairwise(starts)):
        if start == stop:
            continue
        sizes = statistics.sizes[order[start:stop]]
        before[i] = np.median(sizes)
        if ((sizes >= _LOST) & (sizes * factors[i] < _LOST)).mean() >= 0.25:
            found.append(i)
    return found, before, before * factors


def describe_too_large(statistics: Statistics, settings: Settings, part: str) -> str:
    """Returns a sentence with count, example and advice; "" if there are no such images."""
    found, before, after = find_too_large(statistics, settings)
    if not found:
        return ""
    worst = min(found, key=lambda i: after[i])
    median = float(np.median(before[found]))
    tile = max(_multiple(settings.short_side * median / (1.5 * _SMALLEST)), settings.short_side)
    return (
        f"{len(found)} of {statistics.num_images} {part} images are large enough to need tiles: "
        f"resized to a shorter side of {settings.short_side} px at least a quarter of their "
        f"objects has under {_LOST:.0f} px, e.g. '{statistics.file_names[worst]}' "
        f"({statistics.widths[worst]} x {statistics.heights[worst]}): median object "
        f"{before[worst]:.0f} px, then {after[worst]:.0f}. Cut them into tiles of about {tile} px "
        "for training, and predict with --tiles"
    )


def _multiple(value: float) -> int:
    return max(round(value / _STEP), 1) * _STEP
