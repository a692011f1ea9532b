"""Sample selection that sees predictions, on two images: TAL, SimOTA, dynamic soft labels."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from atss_d2.modeling import DynamicSoftLabelMatcher, SimOTAMatcher, TaskAlignedMatcher
from atss_d2.modeling.geometry import box_centers
from atss_d2.modeling.matchers import DenseMatcher
from atss_d2.modeling.nouns import DecodedPredictions
from atss_d2.modeling.nouns import Scene as MatchingScene
from atss_d2.modeling.scene import build_scene

from .. import peers, scenes
from ..memory import peaks
from ..published_rules import sim_ota, task_aligned
from ..results import Measurement, Target
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Assignment by predictions"
CASE = "prediction_rules"

TAL, SIM_OTA = "TAL", "SimOTA"
SOFT_LABELS = "dynamic soft labels"
PUBLISHED = "as published"
_LEAST_RATIO = 10.0
_NUM_CLASSES, _NUM_BOXES = 80, 100
_STAGES = ("at the start of training", "after training")


def steps(settings: Settings) -> list[Step]:
    """Returns a step for the predictions of each stage of training."""
    return [Step(stage, functools.partial(_measure, settings, stage)) for stage in _STAGES]


def matching_scene(
    image_size: tuple[int, int], num_boxes: int, num_classes: int, stage: str, device: torch.device
) -> MatchingScene:
    """Returns two images with predictions.

    At the start of training, scores are near 0.01 and boxes near the anchors. After training, they
    are those of :func:`benchmarks.scenes.predictions`.
    """
    anchors = [level.tensor.to(device) for level in scenes.anchors(image_size)]
    images = scenes.ground_truth(2, num_boxes, image_size, num_classes)
    logits, boxes = [], []
    for seed in range(len(images)):
        if stage == _STAGES[1]:
            found = scenes.predictions(image_size, num_classes, num_boxes, seed)
            logits.append(torch.cat(found.logits))
            boxes.append(torch.cat(found.boxes))
            continue
        generator = torch.Generator().manual_seed(seed)
        all_anchors = torch.cat(anchors).cpu()
        noise = torch.randn(len(all_anchors), 4, generator=generator)
        boxes.append(all_anchors + noise * (all_anchors[:, 2:3] - all_anchors[:, :1]) / 20)
        noise = torch.randn(len(all_anchors), num_classes, generator=generator)
        logits.append(-4.6 + 0.3 * noise)
    return build_scene(
        anchors,
        [image.gt_boxes.to(device) for image in images],
        None,
        scenes.level_sizes(image_size),
        gt_classes=[image.gt_classes for image in images],
        predictions=DecodedPredictions(
            torch.stack(logits).to(device), torch.stack(boxes).to(device)
        ),
    )


def assignments(scene: MatchingScene) -> list[list[peers.Assignment]]:
    """Returns implementations of each rule, ours first."""
    rules: dict[str, DenseMatcher] = {
        TAL: TaskAlignedMatcher(),
        SIM_OTA: SimOTAMatcher(center_radius=2.5, inside_box=True, strides=scenes.STRIDES),
        SOFT_LABELS: DynamicSoftLabelMatcher(strides=scenes.STRIDES),
    }
    ours = {
        name: peers.Assignment(
            name,
            functools.partial(rule.assign, scene),
            lambda assignment: assignment.matched_idxs,
        )
        for name, rule in rules.items()
    }
    return [
        [ours[TAL], peers.Assignment(f"{TAL} {PUBLISHED}", lambda: _task_aligned(scene), _read)],
        [ours[SIM_OTA], peers.Assignment(f"{SIM_OTA} {PUBLISHED}", lambda: _sim_ota(scene), _read)],
        [ours[SOFT_LABELS]],
    ]


def _task_aligned(scene: MatchingScene) -> list[tuple[Tensor, int]]:
    centers = box_centers(torch.cat(scene.anchors))
    results = []
    for logits, found, rows in _images(scene):
        boxes, classes = scene.boxes[rows], scene.classes[rows]
        matched, _ = task_aligned(centers, logits, found, boxes, classes)  # the soft targets
        results.append((matched, rows.start))
    return results


def _sim_ota(scene: MatchingScene) -> list[tuple[Tensor, int]]:
    centers = box_centers(torch.cat(scene.anchors))
    strides = torch.cat(
        [level.new_full((len(level),), s) for level, s in zip(scene.anchors, scenes.STRIDES)]
    )
    return [
        (
            sim_ota(centers, strides, logits, found, scene.boxes[rows], scene.classes[rows]),
            rows.start,
        )
        for logits, found, rows in _images(scene)
    ]


def _images(scene: MatchingScene) -> list[tuple[Tensor, Tensor, slice]]:
    """Returns the predictions of each image, and which of all boxes are its own."""
    logits, found, _ = scene.predictions
    num_boxes = len(scene.boxes) // scene.num_images
    return [
        (logits[n], found[n], slice(n * num_boxes, (n + 1) * num_boxes))
        for n in range(scene.num_images)
    ]


def _read(results: list[tuple[Tensor, int]]) -> Tensor:
    return torch.stack([torch.where(idxs >= 0, idxs + first, idxs) for idxs, first in results])


def _measure(settings: Settings, stage: str) -> list[Measurement]:
    size = settings.choose(scenes.IMAGE_SIZE, (64, 96))
    num_boxes = settings.choose(_NUM_BOXES, 5)
    scene = matching_scene(size, num_boxes, _NUM_CLASSES, stage, settings.torch_device)
    measurements = []
    for rule in assignments(scene):
        different = peers.count_different(rule)
        contestants = [Contestant(assignment.name, assignment.run) for assignment in rule]
        ours, *others = (assignment.name for assignment in rule)
        common = {
            "case": CASE,
            "scene": f"{ours}, 2 x {size[0]} x {size[1]}, {_NUM_CLASSES} classes, {num_boxes} "
            f"boxes an image, {stage}",
            "ours": ours,
        }
        targets = () if settings.quick else tuple(Target(_LEAST_RATIO, name) for name in others)
        notes = [
            f"{name}, {stage}: {count} anchors have another label than from ours, by rounding."
            for name, count in different.items()
            if count
        ]
        measurements += [
            Measurement(
                **common,
                quantity="time",
                unit="s",
                samples=race(contestants, settings),
                targets=targets,
                notes=tuple(notes),
            ),
            Measurement(
                **common, quantity="extra memory", unit="B", samples=peaks(contestants, settings)
            ),
        ]
    return measurements
