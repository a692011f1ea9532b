"""NMS of a batch as in exported detectors: the same time per image as for a single one."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor, nn
from torch.export import Dim

from atss_d2.export.onnx_nms import onnx_kept_by_nms, onnx_translations
from atss_d2.modeling.nms import kept_by_nms
from atss_d2.modeling.scripting import without_jit_warnings

from ..results import Measurement
from ..settings import Settings
from ..timing import Contestant, race
from .nms import SCENES
from .step import Step

TITLE = "NMS of a batch"
CASE = "exported_nms"
_EAGER = "eager"
_THRESHOLD = 0.6
_NUM_CLASSES = 80


class _NMS(nn.Module):
    """The NMS of a batch of boxes (N, T, 4), scores (N, T) and classes (N, T)."""

    def __init__(self, kept: Callable[..., Tensor] = kept_by_nms) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        return self.kept(boxes, scores, classes, scores > -1, _THRESHOLD)


def steps(settings: Settings) -> list[Step]:
    """Returns steps by overlap of the candidates, and by number of images."""
    return [
        Step(f"{num_images} {kind}", functools.partial(_measure, settings, num_images, kind))
        for kind in SCENES
        for num_images in (1, 8)
    ]


def _measure(settings: Settings, num_images: int, kind: str) -> list[Measurement]:
    num = settings.choose(5000, 50)
    images = [SCENES[kind](num) for _ in range(num_images)]
    batch = [torch.stack(parts).to(settings.torch_device) for parts in zip(*images)]
    ways = _ways(batch, settings)
    expected = ways[_EAGER](*batch)
    for way in ways.values():
        if not torch.equal(torch.as_tensor(way(*batch)).cpu(), expected.cpu()):
            raise AssertionError("exported NMS keeps other boxes")
    return [
        Measurement(
            case=CASE,
            scene=f"{num_images} x {num} {kind} candidates",
            quantity="time",
            unit="s",
            samples=race(
                [Contestant(name, functools.partial(way, *batch)) for name, way in ways.items()],
                settings,
            ),
            ours=_EAGER,
        )
    ]


def _ways(batch: list[Tensor], settings: Settings) -> dict[str, Callable[..., Tensor]]:
    with torch.no_grad(), without_jit_warnings():
        ways = {
            _EAGER: _NMS(),
            "TorchScript": torch.jit.trace(_NMS(), tuple(batch), check_trace=False),
            "torch.export": _program(_NMS(), batch).module(check_guards=False),
        }
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        ways["ONNX Runtime"] = _in_onnx_runtime(batch, settings)
    return ways


def _program(nms: nn.Module, batch: list[Tensor]) -> torch.export.ExportedProgram:
    example = tuple(torch.cat((x[:1], x[:1])) for x in batch)
    with fx_config.patch(backed_size_oblivious=True):
        return torch.export.export(nms, example, dynamic_shapes=({0: Dim.DYNAMIC},) * 3)


def _in_onnx_runtime(batch: list[Tensor], settings: Settings) -> Callable[..., Tensor]:
    import onnxruntime

    names = ["boxes", "scores", "classes"]
    exported = torch.onnx.export(
        _program(_NMS(onnx_kept_by_nms(_NUM_CLASSES)), batch),
        dynamo=True,
        opset_version=20,
        input_names=names,
        verbose=False,
        custom_translation_table=onnx_translations(),
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString(), options)

    def run(*inputs: Tensor) -> Tensor:
        feeds = {name: x.cpu().numpy() for name, x in zip(names, inputs)}
        return session.run(None, feeds)[0]

    return run
