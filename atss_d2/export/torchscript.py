"""Exports to TorchScript, for Python, C++ and mobile programs with torch and torchvision.

They need neither this package nor Detectron2, but must load torchvision's operators before the
file: ``import torchvision`` in Python.

Shapes: N images of height H and width W, L levels.
"""

# No `from __future__ import annotations`: the compiler needs types, not their names.
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from ..modeling import ATSS
from ..modeling.choices import check_choice
from ..modeling.scripting import check_scriptable, trace_on_maps, without_jit_warnings
from ..plain.files import replacing
from .checks import check_dtype, check_same_path, check_sample, check_suffix
from .detector import ExportableDetector, to_precision
from .metadata import KEY, Metadata
from .pt2 import complete_metadata
from .swin import use_any_size_attention

METHODS = ("tracing", "scripting")


def export_torchscript(
    model: ATSS,
    sample: Tensor,
    path: str | os.PathLike[str],
    *,
    metadata: Metadata,
    method: str = "tracing",
    with_nms: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a TorchScript file, which needs only torch and torchvision to run.

    ::

        import torch, torchvision
        model = torch.jit.load("model.ts")
        boxes, scores, classes, num_detections = model(images)

    Args:
        model: A model in evaluation mode; it is not changed.
        sample: An image (1, 3, H, W), 0..255, uint8 or float32. The file takes both types, and
            images and batches of any size.
        path: The file, ending in ``.ts``. Missing folders are created.
        metadata: Metadata to save with the model. Fields that this function determines are filled
            in.
        method: "tracing" records the operations on the sample; "scripting" compiles backbone and
            head, for models with data-dependent branches.
        with_nms: See :class:`ExportableDetector`.
        dtype: Type of backbone and head: float32, bfloat16 or, on a GPU, float16.

    Returns:
        ``path``.

    Raises:
        ValueError: ``model`` cannot be exported, or an argument is invalid.
        RuntimeError: Backbone or head cannot be compiled, or Python is too new for it.
    """
    check_choice("method", method, METHODS)
    path = check_suffix(path, ".ts")
    check_sample(sample)
    check_dtype(dtype, "torchscript", model.device)
    # to_precision copies the model even in float32, as scripting renames parameters.
    detector = ExportableDetector(to_precision(model, dtype), with_nms=with_nms)
    metadata = complete_metadata(metadata, sample, with_nms=with_nms, dtype=dtype)
    sample = sample.to(model.device)
    with torch.no_grad(), without_jit_warnings():
        if method == "tracing":
            use_any_size_attention(detector)
            check_same_path(lambda images: detector.predict(detector.prepare(images)), sample)
            script = torch.jit.trace(detector, sample, check_trace=False)
        else:
            script = torch.jit.script(_ScriptableDetector(detector, sample))
        with replacing(path) as temporary:
            torch.jit.save(script, str(temporary), _extra_files={KEY: metadata.to_json()})
    return path


class _ScriptableDetector(nn.Module):
    """An :class:`ExportableDetector` whose backbone and head can be compiled."""

    def __init__(self, detector: ExportableDetector, sample: Tensor) -> None:
        super().__init__()
        model = detector.model
        check_scriptable(model)
        self.backbone = model.backbone
        self.head = model.head
        self.head_in_features = list(model.head_in_features)
        self.prepare = torch.jit.trace(_Preparation(detector), sample, check_trace=False)
        self.postprocess = trace_on_maps(_Postprocessing(detector), model)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = self.backbone(self.prepare(images))
        predictions = self.head([features[name] for name in self.head_in_features])
        maps: list[Tensor] = []
        for prediction in predictions:
            maps.extend(prediction)
        boxes, scores, classes, num_detections = self.postprocess(
            maps, torch.tensor([images.shape[2], images.shape[3]])
        )
        return boxes, scores, classes, num_detections


# Traced modules must not have the backbone and the head among their submodules.
class _Preparation(nn.Module):
    def __init__(self, detector: ExportableDetector) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", detector.model.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", detector.model.pixel_std, persistent=False)
        self.__dict__["_detector"] = detector

    def forward(self, images: Tensor) -> Tensor:
        return self._detector.prepare(images)


class _Postprocessing(nn.Module):
    def __init__(self, detector: ExportableDetector) -> None:
        super().__init__()
        self.anchor_generator = detector.model.anchor_generator
        self.box2box_transform = detector.model.box2box_transform
        self.__dict__["_detector"] = detector

    def forward(
        self, maps: list[Tensor], image_size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_levels = len(self._detector.model.head_in_features)
        predictions = [maps[i : i + num_levels] for i in range(0, len(maps), num_levels)]
        return self._detector.postprocess(predictions, image_size.unbind())
