"""Sample selection on two images, by number of boxes and by image size."""

from __future__ import annotations

import functools

import torch

from .. import peers
from ..memory import peaks
from ..peers import AssignmentScene
from ..results import Measurement, Target
from ..scenes import num_anchors
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Assignment"
CASE = "assignment"

# Boxes per image -> minimum ratio of the published algorithm's time to ours.
_TARGETS = {7: 12.0, 100: 60.0, 300: 100.0}
_NUM_BOXES = (1, 7, 30, 100, 300, 1000)
_SIZES = ((400, 672), (800, 1344), (1600, 2688))
_BOXES_FOR_SIZES = 100
_LARGEST_GROWTH = 1.3
_LARGEST_MEMORY = 20e6
_FILL = "clearing the output"


def steps(settings: Settings) -> list[Step]:
    """Returns steps by number of boxes and by size, for other rules, and for memory."""
    numbers = settings.choose(_NUM_BOXES, (2, 5))
    sizes = settings.choose(_SIZES, ((64, 96), (96, 128)))
    middle = settings.choose(_SIZES[1], sizes[0])
    boxes = settings.choose(_BOXES_FOR_SIZES, 5)
    scenes = [(middle, num) for num in numbers]
    scenes += [(size, boxes) for size in sizes if size != middle]
    return [
        *(
            Step(_words(size, num), functools.partial(_atss, settings, size, num))
            for size, num in scenes
        ),
        Step("growth with the image", functools.partial(_growth, settings, sizes, boxes)),
        Step("other rules", functools.partial(_other_rules, settings, middle, boxes)),
        Step("memory", functools.partial(_memory, settings, middle)),
    ]


def _words(size: tuple[int, int], num_boxes: int) -> str:
    boxes = "box" if num_boxes == 1 else "boxes"
    return f"2 x {size[0]} x {size[1]}, {num_boxes} {boxes} an image"


def _contestants(assignments: list[peers.Assignment]) -> list[Contestant]:
    return [Contestant(assignment.name, assignment.run) for assignment in assignments]


def _atss(settings: Settings, size: tuple[int, int], num_boxes: int) -> list[Measurement]:
    scene = AssignmentScene.of(size, num_boxes, settings.torch_device)
    atss = peers.atss_assignments(scene)
    different = peers.count_different(atss)
    others = [peers.retinanet_rule(scene), peers.torchvision_rule(scene), peers.fcos_rule(scene)]
    samples = race(_contestants(atss + others), settings)
    targets = ()
    if num_boxes in _TARGETS and size == _SIZES[1] and not settings.quick:
        targets = (Target(_TARGETS[num_boxes], peers.PUBLISHED),)
    notes = [
        f"{num_boxes} boxes, {size[0]} x {size[1]}: {count} of {2 * num_anchors(size)} anchors "
        f"have another label from {name} than from ours, by rounding."
        for name, count in different.items()
        if count
    ]
    if peers.MMDET not in samples:
        notes.append(peers.NO_MMDET)
    return [
        Measurement(
            case=CASE,
            scene=_words(size, num_boxes),
            quantity="time",
            unit="s",
            samples=samples,
            ours=peers.OURS,
            targets=targets,
            notes=tuple(notes),
            parameters={
                "boxes": num_boxes,
                "pixels": size[0] * size[1],
                "sweep_boxes": float(size == settings.choose(_SIZES[1], (64, 96))),
                "sweep_pixels": float(num_boxes == settings.choose(_BOXES_FOR_SIZES, 5)),
            },
        )
    ]


def _growth(
    settings: Settings, sizes: tuple[tuple[int, int], ...], num_boxes: int
) -> list[Measurement]:
    """Measures the growth of time for four times the area, without clearing the output."""
    small, large = sizes[-2:]
    contestants = []
    for size in (small, large):
        scene = AssignmentScene.of(size, num_boxes, settings.torch_device)
        for assignment in (peers.ours(scene), peers.published(scene)):
            contestants.append(Contestant(f"{assignment.name} {size}", assignment.run))
        shape = (2, num_anchors(size))
        fill = functools.partial(torch.full, shape, -1, device=settings.torch_device)
        contestants.append(Contestant(f"{_FILL} {size}", fill))
    times = race(contestants, settings)

    def growth(name: str, less: bool) -> list[float]:
        columns = []
        for size in (small, large):
            fill = times[f"{_FILL} {size}"] if less else [0.0] * len(times[f"{name} {size}"])
            pairs = zip(times[f"{name} {size}"], fill)
            columns.append([max(total - part, 1e-9) for total, part in pairs])
        return [b / a for a, b in zip(*columns)]

    return [
        Measurement(
            case=CASE,
            scene=f"{small[0]} x {small[1]} to {large[0]} x {large[1]}, {num_boxes} boxes an image",
            quantity="growth of time, clearing the output left out",
            unit="x",
            samples={
                peers.OURS: growth(peers.OURS, True),
                peers.PUBLISHED: growth(peers.PUBLISHED, True),
                f"{peers.OURS}, clearing included": growth(peers.OURS, False),
                _FILL: growth(_FILL, False),
            },
            ours=peers.OURS,
            targets=() if settings.quick else (Target(_LARGEST_GROWTH),),
        )
    ]


def _other_rules(settings: Settings, size: tuple[int, int], num_boxes: int) -> list[Measurement]:
    scene = AssignmentScene.of(size, num_boxes, settings.torch_device)
    measurements = []
    for assignments in peers.same_rule_assignments(scene):
        peers.count_different(assignments)
        measurements.append(
            Measurement(
                case=CASE,
                scene=f"{_words(size, num_boxes)}, the same rule",
                quantity="time",
                unit="s",
                samples=race(_contestants(assignments), settings),
                ours=assignments[0].name,
            )
        )
    return measurements


def _memory(settings: Settings, size: tuple[int, int]) -> list[Measurement]:
    num_boxes = settings.choose(1000, 20)
    scene = AssignmentScene.of(size, num_boxes, settings.torch_device, num_images=1)
    found = [*peers.atss_assignments(scene), peers.retinanet_rule(scene), peers.fcos_rule(scene)]
    return [
        Measurement(
            case=CASE,
            scene=f"1 x {size[0]} x {size[1]}, {num_boxes} boxes",
            quantity="extra memory",
            unit="B",
            samples=peaks(_contestants(found), settings),
            ours=peers.OURS,
            targets=() if settings.quick else (Target(_LARGEST_MEMORY),),
        )
    ]
