"""Exported files of the demo's detector in their runtimes, against the model in eager mode."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import Backbone
from torch import Tensor, nn

import atss_d2
from atss_d2.export import (
    ExportedDetector,
    Metadata,
    export_aot_inductor,
    export_onnx,
    export_pt2,
    export_torchscript,
    load_exported,
    quantize_onnx,
)

from .. import scenes
from ..results import Measurement
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Exported models"
CASE = "deployment"
_CONFIG = "demo/atss_mobilenetv2_trees"
_SIZE = (600, 600)  # the demo's photographs, enlarged as its config enlarges them
# One pixel more than multiples of the strides, a single pixel, several levels of one cell.
_OTHER_SIZES = ((65, 97), (1, 1), (257, 33), (321, 480))
_BOX_TOLERANCE, _SCORE_TOLERANCE = 1e-2, 1e-4
_CHANNELS = 96
_EAGER = "eager"
_INT8 = "ONNX Runtime, int8"
_NO_ONNX = "ONNX is left out: onnx, onnxscript and onnxruntime are not all installed."


def steps(settings: Settings) -> list[Step]:
    """Returns one race of all formats."""
    return [Step("formats", functools.partial(_formats, settings))]


def _formats(settings: Settings) -> list[Measurement]:
    size = settings.choose(_SIZE, (64, 96))
    model = demo_model(settings.quick).to(settings.torch_device)
    image = scenes.random_images(1, size)[0]
    with tempfile.TemporaryDirectory() as folder:
        paths, notes = export_all(model, image[None], Path(folder), settings)
        detectors = {name: _load(path, settings) for name, path in paths.items()}
        exact = {name: detector for name, detector in detectors.items() if name != _INT8}
        differences = largest_differences(model, exact, [size, *_OTHER_SIZES])
        images = image[None].numpy()
        on_device = {"image": image.to(settings.torch_device)}
        contestants = [Contestant(_EAGER, functools.partial(_run_eager, model, on_device))]
        contestants += [
            Contestant(name, functools.partial(detector, images))
            for name, detector in detectors.items()
        ]
        samples = race(contestants, settings)
        sizes = {name: [float(path.stat().st_size)] for name, path in paths.items()}
    scene = f"1 x {size[0]} x {size[1]}, MobileNetV2-FPN, 1 class"
    return [
        Measurement(
            case=CASE,
            scene=scene,
            quantity="time",
            unit="s",
            samples=samples,
            ours=_EAGER,
            notes=notes,
        ),
        Measurement(case=CASE, scene=scene, quantity="size of the file", unit="B", samples=sizes),
        *(
            Measurement(
                case=CASE,
                scene=f"images of {len(_OTHER_SIZES) + 1} sizes",
                quantity=f"largest difference of a {what}",
                unit=unit,
                samples={name: [values[i]] for name, values in differences.items()},
            )
            for i, (what, unit) in enumerate((("box", "px"), ("score", "")))
        ),
    ]


class ShallowBackbone(Backbone):
    """Four convolutions with the output shapes of the demo's backbone, exported in no time."""

    def __init__(self) -> None:
        super().__init__()
        strides = {"p3": 8, "p4": 16, "p5": 32, "p6": 64}
        self.stem = nn.Conv2d(3, _CHANNELS, kernel_size=8, stride=8)
        self.down = nn.ModuleList(
            nn.Conv2d(_CHANNELS, _CHANNELS, kernel_size=2, stride=2) for _ in range(3)
        )
        self._out_features = list(strides)
        self._out_feature_strides = strides
        self._out_feature_channels = dict.fromkeys(strides, _CHANNELS)

    @property
    def size_divisibility(self) -> int:
        return 64

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        features = {"p3": x}
        for i, conv in enumerate(self.down):
            x = conv(x.relu())
            features[self._out_features[i + 1]] = x
        return features


def demo_model(quick: bool = False) -> nn.Module:
    """Builds the demo's detector with random weights, with scores as varied as if trained."""
    cfg = atss_d2.get_config(_CONFIG).model
    if quick:
        cfg.backbone = L(ShallowBackbone)()
    torch.manual_seed(0)
    model = instantiate(cfg).eval()
    nn.init.normal_(model.head.cls_score.weight, std=0.3)
    return model.to(memory_format=torch.channels_last)  # as the config has it


def export_all(
    model: nn.Module, sample: Tensor, folder: Path, settings: Settings
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Writes a file of each format; returns them by name, and a note if some cannot be written."""
    metadata = Metadata.from_model(model)
    paths = {}
    for method, name in (("tracing", "traced"), ("scripting", "scripted")):
        paths[f"TorchScript, {name}"] = export_torchscript(
            model, sample, folder / f"{name}.ts", metadata=metadata, method=method
        )
    if not settings.quick:  # takes longer than all other quick runs
        paths["torch.export"] = export_pt2(model, sample, folder / "model.pt2", metadata=metadata)
    if settings.compile:
        path = folder / "model_aot.pt2"
        paths["AOTInductor"] = export_aot_inductor(model, sample, path, metadata=metadata)
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        return paths, (_NO_ONNX,)
    paths["ONNX Runtime"] = export_onnx(model, sample, folder / "model.onnx", metadata=metadata)
    paths[_INT8] = quantize_onnx(paths["ONNX Runtime"], folder / "int8.onnx")
    return paths, ()


def _load(path: Path, settings: Settings) -> ExportedDetector:
    if path.suffix == ".onnx":
        return load_exported(path, num_threads=settings.threads)
    return load_exported(path, device=settings.device)


def largest_differences(
    model: nn.Module, detectors: dict[str, ExportedDetector], sizes: Sequence[tuple[int, int]]
) -> dict[str, tuple[float, float]]:
    """Compares detections with the nearest ones of the model that have the same class.

    Returns:
        By name: the largest difference of a box side in pixels, and of a score.

    Raises:
        ValueError: A file finds a different number of objects, or other objects.
    """
    largest = dict.fromkeys(detectors, (0.0, 0.0))
    for size in sizes:
        (image,) = scenes.random_images(1, size)
        expected = _run_eager(model, {"image": image.to(model.device)})[0]["instances"].to("cpu")
        theirs = _rows(expected.pred_boxes.tensor, expected.pred_classes, expected.scores)
        for name, detector in detectors.items():
            found = [torch.from_numpy(x) for x in detector(image[None].numpy())]
            boxes, scores, classes = (x[0, : int(found[3][0])] for x in found[:3])
            ours = _rows(boxes, classes, scores)
            differences = [largest[name]]
            if len(theirs):
                distances = (theirs[:, None] - ours).abs()  # (D, D', 6)
                nearest = distances.amax(dim=2).argmin(dim=1)
                nearest = distances[torch.arange(len(theirs)), nearest]  # (D, 6)
                differences.append((float(nearest[:, :5].max()), float(nearest[:, 5].max())))
            largest[name] = tuple(map(max, zip(*differences)))
            box, score = largest[name]
            if len(ours) != len(theirs) or box > _BOX_TOLERANCE or score > _SCORE_TOLERANCE:
                raise ValueError(
                    f"{name} does not find what the model finds in an image of {size}: "
                    f"{len(ours)} objects instead of {len(theirs)}, {box:.2g} px and "
                    f"{score:.2g} of the score apart"
                )
    return largest


def _rows(boxes: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
    """Returns rows (D, 6) in which other classes are far away."""
    return torch.cat((boxes, 1e4 * classes[:, None], scores[:, None]), dim=1)


@torch.no_grad()
def _run_eager(model: nn.Module, inputs: dict) -> list[dict]:
    return model([inputs])
