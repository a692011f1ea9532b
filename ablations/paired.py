"""Compares detectors that saw the same images and seeds: differences of AP with intervals.

Differences between rows are smaller than the spread of a row over seeds and images, which all rows
share. So rows are compared in pairs, on the same seeds and images, and the interval comes from
drawing both anew, with replacement (bootstrap).

Shapes: N images, D detections of a class, best score first, T = 10 IoU thresholds, B draws.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.stats import norm
from scipy.stats import t as student_t

RECALLS = np.linspace(0, 1, 101)
NUM_BINS = 10  # of scores, for the calibration
NUM_DRAWS = 1000  # of images and seeds, for an interval


@dataclass(frozen=True)
class ClassMatches:
    """How the detections of one class match the objects, by COCO's rules.

    Attributes:
        scores: (D,) best first.
        images: (D,) index of the image of each detection.
        is_hit: (T, D) whether the detection is a true positive.
        num_objects: (N,) objects of the class in each image.
    """

    scores: np.ndarray
    images: np.ndarray
    is_hit: np.ndarray
    num_objects: np.ndarray


def match(annotations: COCO, detections: Path) -> list[ClassMatches]:
    """Matches the detections of a run to the objects, at most 100 per image, as COCO does.

    Args:
        annotations: The data set.
        detections: ``coco_instances_results.json`` of the run.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The data set has crowds, at which a detection may be ignored or not, depending
            on the threshold.
    """
    if any(x.get("iscrowd") for x in annotations.anns.values()):
        raise ValueError("the comparison of rows is for data sets without crowds (iscrowd=1)")
    results = json.loads(detections.read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        # pycocotools cannot load an empty list.
        found = annotations.loadRes(results) if results else COCO()
        evaluation = COCOeval(annotations, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        if not results:
            return [_without_detections(annotations, k) for k in evaluation.params.catIds]
        evaluation.evaluate()
    num_images = len(evaluation.params.imgIds)
    per_image = np.array(evaluation.evalImgs, dtype=object).reshape(-1, num_images)
    return [_joined(images) for images in per_image]


def _joined(per_image: Sequence[dict | None]) -> ClassMatches:
    scores, images, is_hit, num_objects = [np.zeros(0)], [np.zeros(0, int)], [np.zeros((10, 0))], []
    for i, image in enumerate(per_image):
        if image is None:  # neither objects nor detections
            num_objects.append(0)
            continue
        num_objects.append(int((np.asarray(image["gtIgnore"]) == 0).sum()))
        is_counted = ~np.asarray(image["dtIgnore"], bool).any(axis=0)
        scores.append(np.asarray(image["dtScores"])[is_counted])
        images.append(np.full(int(is_counted.sum()), i))
        is_hit.append((np.asarray(image["dtMatches"]) > 0)[:, is_counted])
    scores = np.concatenate(scores)
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(
        scores[order],
        np.concatenate(images)[order],
        np.concatenate(is_hit, axis=1).astype(bool)[:, order],
        np.array(num_objects),
    )


def _without_detections(annotations: COCO, category: int) -> ClassMatches:
    images = sorted(annotations.getImgIds())
    counts = [len(annotations.getAnnIds(imgIds=i, catIds=category)) for i in images]
    none = np.zeros(0)
    return ClassMatches(none, none.astype(int), np.zeros((10, 0), bool), np.array(counts))


def average_precision(matches: Sequence[ClassMatches], weights: np.ndarray) -> np.ndarray:
    """Computes AP (T,) in percent, the mean over the classes, of images drawn several times.

    With weights of 1 it is COCO's.

    Args:
        matches: One for each class.
        weights: (N,) how often each image was drawn.
    """
    per_class = []
    for found in matches:
        num_objects = found.num_objects @ weights
        if num_objects:
            per_class.append(_interpolated(found, weights, num_objects))
    return 100 * np.mean(per_class, axis=0) if per_class else np.full(10, np.nan)


def _interpolated(found: ClassMatches, weights: np.ndarray, num_objects: int) -> np.ndarray:
    """Returns the mean precision (T,) at the 101 recalls, each the best at that recall or above."""
    count = weights[found.images]  # (D,)
    hits = np.cumsum(found.is_hit * count, axis=1)  # (T, D)
    total = np.cumsum(count)
    precision = hits / np.maximum(total, 1e-12)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / num_objects
    mean = np.zeros(len(hits))
    for t, (of_threshold, at) in enumerate(zip(precision, recall)):
        places = np.searchsorted(at, RECALLS, side="left")
        is_reached = places < len(at)
        mean[t] = of_threshold[places[is_reached]].sum() / len(RECALLS)
    return mean


def draw_images(num_images: int, num_draws: int, seed: int = 0) -> np.ndarray:
    """Returns how often each image is in each draw, (B, N)."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(num_images, size=(num_draws, num_images))
    return np.stack([np.bincount(row, minlength=num_images) for row in drawn])


def interval_of_difference(
    row: np.ndarray, baseline: np.ndarray, *, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Returns the interval of the mean difference, over draws of seeds and images.

    The share of the seeds is widened: drawing few values with replacement has too small a variance,
    by (S - 1) / S, and the tails of Student's t distribution are heavier than the normal ones.

    Args:
        row: (S, B) AP of each seed on each draw of images.
        baseline: (S, B), of the same seeds on the same draws.
        seed: For the draws of seeds.
        level: Share of the draws inside.

    Returns:
        Both ends; infinite for a single seed, which does not tell how seeds differ.
    """
    num_seeds, num_draws = row.shape
    if num_seeds == 1:
        return -np.inf, np.inf
    drawn = np.random.default_rng([seed, 1]).integers(num_seeds, size=(num_draws, num_seeds))
    difference = (row - baseline).T  # (B, S)
    of_seeds = np.take_along_axis(difference, drawn, axis=1).mean(axis=1)
    mean = difference.mean(axis=1)
    tail = (1 - level) / 2
    wider = student_t.ppf(1 - tail, num_seeds - 1) / norm.ppf(1 - tail)
    wider *= np.sqrt(num_seeds / (num_seeds - 1))
    low, high = np.percentile(mean + wider * (of_seeds - mean), [100 * tail, 100 - 100 * tail])
    return float(low), float(high)


def calibration_error(matches: Sequence[ClassMatches], min_score: float = 0.05) -> float:
    """Computes the expected calibration error of the scores, in percent.

    It is the mean distance, over bins of scores weighted by their detections, of the mean score
    from the share of detections that hit an object at IoU 0.5.

    Args:
        matches: One for each class.
        min_score: Detections below do not count.
    """
    scores = np.concatenate([x.scores for x in matches])
    is_hit = np.concatenate([x.is_hit[0] for x in matches])
    is_counted = scores >= min_score
    scores, is_hit = scores[is_counted], is_hit[is_counted]
    if not len(scores):
        return float("nan")
    bins = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [
        abs(scores[bins == i].sum() - is_hit[bins == i].sum()) for i in range(NUM_BINS)
    ]  # of the means, times the detections
    return 100 * sum(gaps) / len(scores)
