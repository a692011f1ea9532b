"""Counts positives by object size: what a selection rule does, without training.

Shapes: S scenes, M boxes of all scenes, R anchors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig
from torch import Tensor, nn

from atss_d2.config import get_config
from atss_d2.modeling.matchers import DenseMatcher

from .configs import load_row_config
from .rows import find_row, select_rows

# Rule -> a row of the study with this rule.
RULES = {
    "IoU": "table2/iou_box",
    "spatial and scale": "table2/spatial_scale_point",
    "center sampling": "table3/fcos_center_sampling",
    "ATSS": "table3/retinanet_atss",
}
# Objects are grouped by sqrt(area) in pixels, in half octaves.
SIZE_EDGES = tuple(float(8 * 2 ** (i / 2)) for i in range(14))  # 8 to 724


@dataclass(frozen=True)
class Scene:
    """The boxes of one image.

    Args:
        image_size: Height and width in pixels.
        boxes: (Mn, 4) XYXY in pixels.
    """

    image_size: tuple[int, int]
    boxes: Tensor


@dataclass(frozen=True)
class PositiveCounts:
    """Sizes of objects, and the number of positives that each of them got.

    Args:
        sizes: (M,) sqrt(area) in pixels.
        counts: (M,) number of positives.
    """

    sizes: np.ndarray
    counts: np.ndarray

    def by_size(self) -> list[dict[str, float | int | None]]:
        """Returns number of objects, mean count and share of zeros by :data:`SIZE_EDGES`."""
        groups = np.digitize(self.sizes, SIZE_EDGES) - 1
        return [
            {"from": low, "to": high, **_summary(self.counts[groups == i])}
            for i, (low, high) in enumerate(itertools.pairwise(SIZE_EDGES))
        ]

    def summary(self) -> dict[str, float | int | None]:
        """Returns the same for all objects together."""
        return _summary(self.counts)


def _summary(counts: np.ndarray) -> dict[str, float | int | None]:
    if not len(counts):
        return {"objects": 0, "mean": None, "std": None, "without": None}
    return {
        "objects": len(counts),
        "mean": float(counts.mean()),
        "std": float(counts.std()),
        "without": float((counts == 0).mean()),
    }


def random_scenes(
    num_scenes: int, *, image_size: tuple[int, int] = (800, 1344), seed: int = 0
) -> list[Scene]:
    """Returns scenes with one box each, so that no two boxes compete for an anchor.

    sqrt(area) is log-uniform from 8 px to 0.9 times the height of the image. The aspect ratio is
    log-uniform from 1:2 to 2:1, as far as the box fits. The position is uniform within the image.
    """
    rng = np.random.default_rng(seed)
    height, width = image_size
    size = np.exp(rng.uniform(np.log(8), np.log(0.9 * height), num_scenes))  # (S,)
    aspect = np.exp(rng.uniform(-np.log(2), np.log(2), num_scenes))  # height / width
    h = np.minimum(size * np.sqrt(aspect), height)
    w = np.minimum(size**2 / h, width)
    x = rng.uniform(0, width - w)
    y = rng.uniform(0, height - h)
    boxes = torch.tensor(np.stack((x, y, x + w, y + h), axis=1), dtype=torch.float32)  # (S, 4)
    return [Scene(image_size, box[None]) for box in boxes]


def training_scenes(cfg: DictConfig) -> list[Scene]:
    """Returns every training image of a config once, as its mapper returns it (augmented)."""
    mapper = instantiate(cfg.dataloader.train.mapper)
    scenes = []
    for dataset_dict in instantiate(cfg.dataloader.train.dataset):
        mapped = mapper(dataset_dict)
        boxes = mapped["instances"].gt_boxes.tensor
        scenes.append(Scene(tuple(mapped["image"].shape[-2:]), boxes))
    return scenes


def count_positives(
    matcher: DenseMatcher,
    anchor_generator: nn.Module,
    scenes: Sequence[Scene],
    *,
    size_divisibility: int = 32,
) -> PositiveCounts:
    """Counts the positives of every box.

    Args:
        matcher: Selection rule.
        anchor_generator: Generates anchors of L levels.
        scenes: Images with boxes. Consecutive scenes of equal size are matched together.
        size_divisibility: Images are padded to a multiple of it, as the backbone requires.
    """
    sizes, counts = [], []
    for (height, width), group in _grouped(scenes):
        shape = [-(-side // size_divisibility) * size_divisibility for side in (height, width)]
        anchors = _anchors(anchor_generator, shape)
        matched = matcher(anchors, [scene.boxes for scene in group])  # (N, R)
        for scene, row in zip(group, matched, strict=True):
            counts.append(torch.bincount(row[row >= 0], minlength=len(scene.boxes)))
            sizes.append(Boxes(scene.boxes).area().sqrt())
    return PositiveCounts(torch.cat(sizes).double().numpy(), torch.cat(counts).numpy())


def _grouped(
    scenes: Iterable[Scene], most: int = 32
) -> Iterable[tuple[tuple[int, int], list[Scene]]]:
    group: list[Scene] = []
    for scene in scenes:
        if group and (len(group) == most or scene.image_size != group[0].image_size):
            yield group[0].image_size, group
            group = []
        group.append(scene)
    if group:
        yield group[0].image_size, group


def _anchors(anchor_generator: nn.Module, shape: Sequence[int]) -> list[Boxes]:
    maps = [
        torch.empty(1, 1, -(-shape[0] // stride), -(-shape[1] // stride))
        for stride in anchor_generator.strides
    ]
    return anchor_generator(maps)


def measure_positives(data: str, *, num_objects: int = 2048) -> dict[str, Any]:
    """Counts positives under every rule on generated boxes, and on the boxes of a data set.

    Args:
        data: Data set of the study; for ``"coco"`` only the generated boxes are used.
        num_objects: Number of generated boxes.

    Returns:
        Values that JSON can hold: ``scenes`` (name of the boxes -> rule -> summary and groups by
        size) and ``sweeps`` (table -> row -> summary on the generated boxes).
    """
    generated = random_scenes(num_objects)
    scenes = {"generated": generated}
    if data != "coco":
        cfg = load_row_config(find_row(RULES["ATSS"]), data)
        seed_all_rng(0)  # for the augmentations
        scenes[data] = training_scenes(cfg)
    return {
        "scenes": {
            name: {rule: _describe(row, boxes) for rule, row in RULES.items()}
            for name, boxes in scenes.items()
        },
        "sweeps": {
            table: {
                row.name: _describe(row.name, generated)["summary"]
                for row in select_rows([f"{table}/*"])
            }
            for table in ("table4", "table5")
        },
    }


def _describe(row: str, scenes: Sequence[Scene]) -> dict[str, Any]:
    model = get_config(find_row(row).config).model
    anchor_generator = instantiate(model.anchor_generator)
    counts = count_positives(instantiate(model.matcher), anchor_generator, scenes)
    return {"summary": counts.summary(), "by_size": counts.by_size()}
