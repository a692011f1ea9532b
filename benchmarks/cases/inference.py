"""Inference of R-50-FPN in eager mode: the time outside backbone and head, and options."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .. import scenes
from ..models import ATSS, FCOS, build
from ..postprocessors import maps_for
from ..results import Measurement, Target
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Inference"
CASE = "inference"
_LARGEST_SHARE = 5.0  # percent
_OURS = "eager float32"
_BATCH = 2
_BATCHED = f"{_BATCH} images at once"


def steps(settings: Settings) -> list[Step]:
    """Returns steps for the share of post-processing, options, and graph breaks."""
    size = settings.choose(scenes.IMAGE_SIZE, (64, 96))
    return [
        Step("share", functools.partial(_share, settings, size)),
        Step("options", functools.partial(_options, settings, size)),
        Step("graph breaks", functools.partial(_graph_breaks, settings)),
    ]


class Network(nn.Module):
    """Backbone and head of a detector, the part that is worth compiling."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.head_in_features = model.head_in_features

    def forward(self, images: Tensor) -> list[list[Tensor]]:
        features = self.backbone(images)
        return self.head([features[name] for name in self.head_in_features])


@contextlib.contextmanager
def _network_seconds(model: nn.Module) -> Iterator[list[float]]:
    """Collects the time that each call of backbone and head takes."""
    seconds, starts = [], []

    def start(*_) -> None:
        starts.append(time.perf_counter())

    def stop(*_) -> None:
        seconds.append(time.perf_counter() - starts.pop())

    hooks = []
    for module in (model.backbone, model.head):
        hooks += [module.register_forward_pre_hook(start)]
        # Before the hooks registered earlier, which return a trained head's predictions.
        hooks += [module.register_forward_hook(stop, prepend=True)]
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()


def _share(settings: Settings, size: tuple[int, int]) -> list[Measurement]:
    """Measures shares of whole calls of the models, with predictions like a trained head's."""
    inputs = [{"image": image.to(settings.device)} for image in scenes.random_images(1, size)]
    samples: dict[str, list[float]] = {}
    models = {}
    for name in (ATSS, FCOS):
        models[name] = build(name, with_backbone=True).to(settings.torch_device).eval()
        found = scenes.predictions(size, models[name].num_classes)
        maps = maps_for(models[name], found, size, with_centerness=True)
        maps = [[level.to(settings.device) for level in part] for part in maps]
        models[name].head.register_forward_hook(
            lambda *_, maps=maps: [[level.clone() for level in part] for part in maps]
        )
        samples[name] = []
    with torch.no_grad():
        for _ in range(1 + settings.choose(5, 2)):
            for name, model in models.items():
                with _network_seconds(model) as seconds:
                    total = -time.perf_counter()
                    model(inputs)
                    _synchronize(settings)
                    total += time.perf_counter()
                samples[name].append(100 * (1 - sum(seconds) / total))
    return [
        Measurement(
            case=CASE,
            scene=f"1 x {size[0]} x {size[1]}, R-50-FPN, 80 classes",
            quantity="share of all but backbone and head",
            unit="%",
            samples={name: values[1:] for name, values in samples.items()},  # the first warms up
            ours=ATSS,
            targets=() if settings.quick else (Target(_LARGEST_SHARE),),
        )
    ]


def _synchronize(settings: Settings) -> None:
    if settings.torch_device.type == "cuda":
        torch.cuda.synchronize()


def _options(settings: Settings, size: tuple[int, int]) -> list[Measurement]:
    """Measures backbone and head alone."""
    images = torch.randn(1, 3, *size, device=settings.torch_device)
    model = build(ATSS, with_backbone=True).to(settings.torch_device).eval()
    network = Network(model)
    by_channel = Network(build(ATSS, with_backbone=True)).to(settings.torch_device).eval()
    by_channel = by_channel.to(memory_format=torch.channels_last)
    images_by_channel = images.to(memory_format=torch.channels_last)
    batch = images.repeat(_BATCH, 1, 1, 1)
    runs: dict[str, Callable[[], object]] = {
        _OURS: lambda: network(images),
        _BATCHED: lambda: network(batch),
        "channels_last": lambda: by_channel(images_by_channel),
        "bfloat16 autocast": lambda: network(images),
        "channels_last, bfloat16 autocast": lambda: by_channel(images_by_channel),
    }
    if settings.compile:
        compiled = torch.compile(network)
        runs["torch.compile"] = lambda: compiled(images)
    contestants = [
        Contestant(name, functools.partial(_run, settings, "bfloat16" in name, run))
        for name, run in runs.items()
    ]
    samples = race(contestants, settings)
    samples[_BATCHED] = [seconds / _BATCH for seconds in samples[_BATCHED]]
    return [
        Measurement(
            case=CASE,
            scene=f"{size[0]} x {size[1]}, backbone and head",
            quantity="time per image",
            unit="s",
            samples=samples,
            ours=_OURS,
        )
    ]


def _run(settings: Settings, in_bfloat16: bool, run: Callable[[], object]) -> None:
    device_type = settings.torch_device.type
    with torch.no_grad(), torch.autocast(device_type, torch.bfloat16, enabled=in_bfloat16):
        run()


def _graph_breaks(settings: Settings) -> list[Measurement]:
    return [
        Measurement(
            case=CASE,
            scene="torch.compile of backbone and head",
            quantity="graph breaks",
            unit="",
            samples={ATSS: [float(count_graph_breaks(Network(build(ATSS, with_backbone=True))))]},
            ours=ATSS,
            targets=(Target(0.0),),
        )
    ]


def count_graph_breaks(network: nn.Module, image_size: tuple[int, int] = (64, 96)) -> int:
    """Counts how often ``torch.compile`` falls back to Python; needs no C++ compiler."""
    num_graphs = 0

    def count(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Callable:
        nonlocal num_graphs
        num_graphs += 1
        return graph.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(network.eval(), backend=count)(torch.randn(1, 3, *image_size))
    torch.compiler.reset()
    return num_graphs - 1
