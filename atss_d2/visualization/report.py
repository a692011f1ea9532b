"""Draws the worst validation images at the end of a training run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch

from ..plain.files import output_names
from .comparisons import ImageResults, load_results
from .detections import parse_annotations
from .matching import match_detections

# Maximum number of images evaluated for the report, as matching takes time.
_MAX_IMAGES = 500


class Report(NamedTuple):
    """Result of :func:`draw_worst_images`.

    Args:
        score_thresh: Score threshold with the best F1 at IoU 0.5.
        f1: That F1, in 0..1.
        pictures: Files, the worst image first.
    """

    score_thresh: float
    f1: float
    pictures: list[Path]


class _Counts(NamedTuple):
    """An image's detections outside crowd regions, and its number of objects."""

    scores: torch.Tensor  # (D,)
    is_hit: torch.Tensor  # (D,) bool
    num_objects: int

    def f1(self, score_thresh: float) -> float:
        """Returns the F1; 1 for an image without objects and detections."""
        shown = self.scores >= score_thresh
        num_hits, num_shown = int((self.is_hit & shown).sum()), int(shown.sum())
        total = num_shown + self.num_objects
        return 2 * num_hits / total if total else 1.0

    def num_mistakes(self, score_thresh: float) -> int:
        shown = self.scores >= score_thresh
        num_hits = int((self.is_hit & shown).sum())
        return int(shown.sum()) + self.num_objects - 2 * num_hits


def draw_worst_images(
    dataset_name: str,
    results: str | os.PathLike | list[dict],
    output_dir: str | os.PathLike,
    *,
    num_pictures: int,
) -> Report:
    """Draws ground truth beside detections, starting with the image with the lowest F1.

    Shows detections above the score threshold with the best F1 over all images (a maximum of 500,
    evenly spaced), which is the threshold that a user would choose.

    Args:
        dataset_name: Name in Detectron2's ``DatasetCatalog``.
        results: Detections in COCO format, or a JSON file with them.
        output_dir: Folder for the PNG files, whose names begin with their rank. Those of an earlier
            call are removed.
        num_pictures: Maximum number of pictures.

    Raises:
        ValueError: The results are from another data set.
    """
    images = load_results(dataset_name, results)
    images = images[:: max(1, -(-len(images) // _MAX_IMAGES))]
    counts = [_count(image) for image in images]
    score_thresh, f1 = best_f1(counts)
    order = sorted(
        range(len(images)),
        key=lambda i: (counts[i].f1(score_thresh), -counts[i].num_mistakes(score_thresh)),
    )[:num_pictures]
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    for old in output_dir.glob("[0-9][0-9][0-9]_*.png"):
        old.unlink()
    pictures = []
    for rank, (i, name) in enumerate(
        zip(order, output_names([images[i].file_name for i in order])), start=1
    ):
        flat = str(Path(name).with_suffix(".png")).replace(os.sep, "_")
        pictures.append(output_dir / f"{rank:03d}_{flat}")
        images[i].draw(pictures[-1], score_thresh=score_thresh)
    return Report(score_thresh, f1, pictures)


def best_f1(counts: list[_Counts]) -> tuple[float, float]:
    """Returns the score threshold with the best F1, and that F1; (0.5, 0) if nothing is right."""
    if not counts:
        return 0.5, 0.0
    scores, order = torch.cat([c.scores for c in counts]).sort(descending=True)
    is_hit = torch.cat([c.is_hit for c in counts])[order]
    if not is_hit.any():
        return 0.5, 0.0
    num_objects = sum(c.num_objects for c in counts)
    num_shown = torch.arange(1, len(scores) + 1)
    f1 = 2 * is_hit.cumsum(0) / (num_shown + num_objects)  # showing the best 1, 2, ... of them
    # Detections with equal scores are all shown or all hidden.
    is_last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
    best = int(f1.masked_fill(~is_last, -1).argmax())
    # Rounded down to two digits, so that all detections at the best threshold are still shown.
    return float(int(float(scores[best]) * 100) / 100), float(f1[best])


def _count(image: ImageResults) -> _Counts:
    instances = image.instances()
    gt_boxes, gt_classes, is_crowd = parse_annotations(image.annotations)
    matches = match_detections(instances, gt_boxes, gt_classes, is_crowd)
    counted = ~matches.is_ignored
    return _Counts(
        instances.scores[counted], matches.is_hit[counted], num_objects=int((~is_crowd).sum())
    )
