"""Exports trained detectors to TorchScript, torch.export, ONNX and AOTInductor files.

::

    metadata = Metadata.from_model(model, class_names=["tree"], resize_factor=1.5)
    export_onnx(model, sample, "trees.onnx", metadata=metadata)
    detections = load_exported("trees.onnx")(images)

``tools/export_model.py`` does this from a config and a checkpoint.
"""

from .aot_inductor import export_aot_inductor
from .detector import ExportableDetector
from .evaluation import ExportedModel
from .metadata import Metadata, resizing_of
from .onnx import export_onnx
from .pt2 import export_pt2
from .quantization import quantize_onnx
from .runtime import Detections, ExportedDetector, load_exported
from .torchscript import export_torchscript

__all__ = [
    "Detections",
    "ExportableDetector",
    "ExportedDetector",
    "ExportedModel",
    "Metadata",
    "export_aot_inductor",
    "export_onnx",
    "export_pt2",
    "export_torchscript",
    "load_exported",
    "quantize_onnx",
    "resizing_of",
]
