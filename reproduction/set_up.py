"""Looks at a recipe, its data and its weights before anything is trained.

These checks find in seconds what the losses of the first iterations may not show: shifted classes,
boxes in another format, pixels on another scale than the pretrained weights expect.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from atss_d2.config import load_config
from atss_d2.engine.rng import preserved_rng

_NUM_IMAGES = 32  # that are read
_MOST_OUTSIDE = 0.01  # share of boxes that leave their image by more than a pixel
_LARGEST_MEAN = 1.5  # of the pixels, in units of their usual deviation
# Deviation of the pixels that the model sees: ImageNet's is about 57 of 255 per channel.
_UNIT, _RAW = (0.4, 1.8), (25.0, 100.0)
_LR_FACTOR = 2.0


@dataclass(frozen=True)
class Facts:
    """What the data of a recipe are like.

    Args:
        class_counts: Boxes of each class.
        outside: Share of boxes that leave their image by more than a pixel.
        pixel_mean: Mean of the pixels that the model sees.
        pixel_std: Their standard deviation.
        image_size: (height, width), the largest seen.
    """

    class_counts: tuple[int, ...]
    outside: float
    pixel_mean: float
    pixel_std: float
    image_size: tuple[int, int]


def look_at(cfg: DictConfig) -> Facts:
    """Counts the boxes of the training set, and maps some of its images as the training does."""
    dataset = instantiate(cfg.dataloader.train.dataset)
    num_classes = cfg.model.num_classes
    counts = [0] * num_classes
    num_boxes = num_outside = 0
    for image in dataset:
        for annotation in image["annotations"]:
            label = annotation["category_id"]
            if 0 <= label < num_classes:
                counts[label] += 1
            num_boxes += 1
            num_outside += _is_outside(annotation["bbox"], image)
    mapper = instantiate(cfg.dataloader.train.mapper)
    with preserved_rng():
        indices = random.Random(0).sample(range(len(dataset)), min(_NUM_IMAGES, len(dataset)))
        images = [mapper(dataset[index])["image"].float() for index in indices]
    mean, std = (
        torch.tensor(list(cfg.model[key])).view(-1, 1, 1) for key in ("pixel_mean", "pixel_std")
    )
    normalized = [(image - mean) / std for image in images]
    pixels = torch.cat([image.flatten() for image in normalized])
    sizes = [image.shape[-2:] for image in images]
    return Facts(
        tuple(counts),
        num_outside / max(num_boxes, 1),
        pixels.mean().item(),
        pixels.std().item(),
        (max(size[0] for size in sizes), max(size[1] for size in sizes)),
    )


def _is_outside(box: Sequence[float], image: dict) -> bool:
    """Returns whether a box, read as x, y, width, height, leaves its image."""
    x, y, width, height = box[:4]
    return (
        min(x, y) < -1
        or x + width > image.get("width", math.inf) + 1
        or y + height > image.get("height", math.inf) + 1
    )


def findings(cfg: DictConfig, facts: Facts, config: str) -> Iterator[str]:
    """Yields what is wrong with a set-up, each in one sentence.

    Args:
        cfg: The recipe with all overrides.
        facts: See :func:`look_at`.
        config: The config without overrides, for its learning rate.
    """
    yield from _classes(facts)
    if facts.outside > _MOST_OUTSIDE:
        yield (
            f"{100 * facts.outside:.0f} % of the training boxes leave their image: COCO's format "
            "is x, y, width, height; are they x1, y1, x2, y2?"
        )
    yield from _pixels(cfg, facts)
    yield from _weights(cfg)
    yield from _learning_rate(cfg, config)


def _classes(facts: Facts) -> Iterator[str]:
    counts = facts.class_counts
    if len(counts) > 1 and not counts[0] and sum(map(bool, counts)) == len(counts) - 1:
        yield (
            "class 0 is the only one without a training box: do the data set's classes count "
            "from 1?"
        )
    if not any(counts):
        yield "no training box has a class of the model"


def _pixels(cfg: DictConfig, facts: Facts) -> Iterator[str]:
    weights = cfg.train.init_checkpoint
    ranges = [_RAW] if "MSRA" in weights else [_UNIT] if "mobilenet" in weights else [_UNIT, _RAW]
    if not any(low <= facts.pixel_std <= high for low, high in ranges):
        expected = " or ".join(f"{low:g} to {high:g}" for low, high in ranges)
        yield (
            f"the pixels that the model sees have a standard deviation of {facts.pixel_std:.3g}, "
            f"not {expected} as its pretrained weights expect: check model.pixel_std"
        )
    scale = 57.0 / (sum(cfg.model.pixel_std) / len(cfg.model.pixel_std))
    if abs(facts.pixel_mean) > _LARGEST_MEAN * scale:
        yield (
            f"the pixels that the model sees have a mean of {facts.pixel_mean:.3g}, not about 0: "
            "check model.pixel_mean"
        )


def _weights(cfg: DictConfig) -> Iterator[str]:
    if cfg.train.init_checkpoint == "":
        frozen = "FrozenBN" in str(cfg.model.backbone)
        yield (
            "train.init_checkpoint is empty: no pretrained weights are loaded"
            + (", and FrozenBN does not train without them" if frozen else "")
        )


def _learning_rate(cfg: DictConfig, config: str) -> Iterator[str]:
    """Compares the learning rate per image with that of the config without overrides."""
    plain = load_config(config)
    rates = [x.optimizer.lr / x.dataloader.train.total_batch_size for x in (cfg, plain)]
    ratio = rates[0] / rates[1]
    if not 1 / _LR_FACTOR <= ratio <= _LR_FACTOR:
        batch = cfg.dataloader.train.total_batch_size
        yield (
            f"optimizer.lr={cfg.optimizer.lr:g} at a batch of {batch} is {ratio:.3g} times the "
            f"recipe's rate per image: scale both together, to optimizer.lr={rates[1] * batch:g}"
        )
