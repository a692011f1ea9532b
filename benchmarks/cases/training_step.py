"""Training steps of R-50-FPN: forward, backward, SGD."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.profiler import ProfilerActivity, profile

from .. import scenes
from ..memory import peak_bytes
from ..models import ATSS, FCOS, RETINANET, build
from ..results import Measurement, Target
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Training step"
CASE = "training_step"
_SMALL = (256, 416)
_NUM_IMAGES, _NUM_BOXES = 2, 10
_DETECTORS = (ATSS, FCOS, RETINANET)
_PROFILE_ROWS = 15


def steps(settings: Settings) -> list[Step]:
    """Returns steps for time and memory of all detectors, and a profile of ours."""
    size = settings.choose(scenes.IMAGE_SIZE if settings.full_size else _SMALL, (64, 96))
    memory_size = settings.choose(scenes.IMAGE_SIZE, (64, 96))
    return [
        Step("time", functools.partial(_time, settings, size)),
        Step("memory", functools.partial(_memory, settings, memory_size)),
        Step("profile", functools.partial(_profile, settings, size)),
    ]


def training_steps(
    model: nn.Module, settings: Settings, *sizes: tuple[int, int]
) -> list[Callable[[], None]]:
    """Returns functions that run one step each, on images of the given (height, width).

    The learning rate is 0, so all steps are the same.
    """
    model.to(settings.torch_device).train()
    optimizer = torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad), lr=0.0, momentum=0.9, weight_decay=1e-4
    )

    def step(batch: list[dict]) -> None:
        with EventStorage():
            losses = sum(model(batch).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()

    steps = []
    for size in sizes:
        images = scenes.random_images(_NUM_IMAGES, size)
        instances = scenes.ground_truth(_NUM_IMAGES, _NUM_BOXES, size, model.num_classes)
        batch = [{"image": i, "instances": x} for i, x in zip(images, instances)]
        steps.append(functools.partial(step, batch))
    return steps


def _scene(size: tuple[int, int]) -> str:
    return f"{_NUM_IMAGES} x {size[0]} x {size[1]}, {_NUM_BOXES} boxes an image, R-50-FPN"


def _peers(settings: Settings) -> tuple[Target, ...]:
    return () if settings.quick else tuple(Target(1.0, name) for name in _DETECTORS[1:])


def _time(settings: Settings, size: tuple[int, int]) -> list[Measurement]:
    contestants = [
        Contestant(name, *training_steps(build(name, with_backbone=True), settings, size))
        for name in _DETECTORS
    ]
    return [
        Measurement(
            case=CASE,
            scene=_scene(size),
            quantity="time",
            unit="s",
            samples=race(contestants, settings),
            ours=ATSS,
            targets=_peers(settings),
        )
    ]


def _memory(settings: Settings, size: tuple[int, int]) -> list[Measurement]:
    """Measures one step each: gradients dominate on small images, but not on large ones."""
    memory = {}
    for name in _DETECTORS:
        model = build(name, with_backbone=True)
        # Momentum exists from the first step on, whatever the size of the images.
        warm_up, step = training_steps(model, settings, (64, 96), size)
        warm_up()
        memory[name] = [peak_bytes(Contestant(name, step, model.zero_grad), settings)]
    return [
        Measurement(
            case=CASE,
            scene=_scene(size),
            quantity="peak memory beyond parameters and momentum",
            unit="B",
            samples=memory,
            ours=ATSS,
            targets=_peers(settings),
        )
    ]


def _profile(settings: Settings, size: tuple[int, int]) -> list[Measurement]:
    (step,) = training_steps(build(ATSS, with_backbone=True), settings, size)
    step()
    on_gpu = settings.torch_device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiler:
        step()
    averages = profiler.key_averages()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(averages, key=lambda row: -getattr(row, key))
    total = sum(getattr(row, key) for row in rows)
    lines = [f"{'operator':<48}{'self time':>12}{'share':>8}{'calls':>8}"]
    for row in rows[:_PROFILE_ROWS]:
        time = getattr(row, key)
        lines.append(f"{row.key[:47]:<48}{time / 1000:>9.1f} ms{time / total:>8.1%}{row.count:>8}")
    rest = sum(getattr(row, key) for row in rows[_PROFILE_ROWS:])
    lines.append(f"{'all others':<48}{rest / 1000:>9.1f} ms{rest / total:>8.1%}")
    return [
        Measurement(
            case=CASE,
            scene=f"{_scene(size)}, the profiler's operators",
            quantity="profile",
            unit="s",
            samples={},
            text="\n".join(lines),
        )
    ]
