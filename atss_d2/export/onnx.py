"""Exports to ONNX, with NMS inside, for images and batches of any size; runs without torch."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..modeling import ATSS
from ..plain.files import replacing
from .checks import check_dtype, check_opset, check_suffix, import_optional
from .metadata import KEY, Metadata
from .onnx_nms import onnx_kept_by_nms, onnx_translations
from .pt2 import complete_metadata, export_program

if TYPE_CHECKING:
    import onnx

INPUT = "images"
OUTPUTS = ("boxes", "scores", "classes", "num_detections")


def export_onnx(
    model: ATSS,
    sample: Tensor,
    path: str | os.PathLike[str],
    *,
    metadata: Metadata,
    with_nms: bool = True,
    dtype: torch.dtype = torch.float32,
    opset: int = 20,
) -> Path:
    """Writes an ``.onnx`` file with input ``images`` and a detector's named outputs.

    ::

        import onnxruntime
        session = onnxruntime.InferenceSession("model.onnx")
        boxes, scores, classes, num_detections = session.run(None, {"images": images})

    Args:
        model: A model in evaluation mode.
        sample: An image (1, 3, H, W), 0..255. Its type, uint8 or float32, becomes the input type;
            its size does not matter.
        path: The file, ending in ``.onnx``. Missing folders are created.
        metadata: Metadata, written to ``metadata_props`` as JSON. Fields that this function
            determines are filled in.
        with_nms: See :class:`ExportableDetector`.
        dtype: Type of backbone and head: float32, or float16 for runtimes on a GPU. (On a CPU, ONNX
            Runtime computes in float32 and converts back and forth, which is slower.)
        opset: 18 or higher, 19 or higher with deformable convolutions.

    Returns:
        ``path``.

    Raises:
        ValueError: ``model`` cannot be exported, or an argument is invalid.
        ImportError: onnx or onnxscript is not installed.
        RuntimeError: This torch is too old.
    """
    path = check_suffix(path, ".onnx")
    check_opset(model, opset)
    check_dtype(dtype, "onnx", model.device)
    onnx = import_optional("onnx")
    import_optional("onnxscript")
    program = export_program(
        model,
        sample,
        with_nms=with_nms,
        dtype=dtype,
        kept_by_nms=onnx_kept_by_nms(model.num_classes),
    )
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            custom_translation_table=onnx_translations(),
            verbose=False,
        )
    proto = exported.model_proto
    written_opset = next(x.version for x in proto.opset_import if x.domain in ("", "ai.onnx"))
    if written_opset != opset:
        raise RuntimeError(f"asked for opset {opset}, the exporter wrote {written_opset}")
    _tidy(proto)
    metadata = complete_metadata(metadata, sample, with_nms=with_nms, dtype=dtype)
    onnx.helper.set_model_props(proto, {KEY: metadata.to_json()})
    onnx.checker.check_model(proto, full_check=True)
    with replacing(path) as temporary:
        onnx.save(proto, temporary)
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of the exporter and its packages about their own code."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _tidy(proto: onnx.ModelProto) -> None:
    """Names the free sizes, and removes the exporter's notes on this machine's source files."""
    graph = proto.graph
    sizes = graph.input[0].type.tensor_type.shape.dim
    names = {sizes[i].dim_param: name for i, name in ((0, "batch"), (2, "height"), (3, "width"))}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(
                    r"\w+", lambda word: names.get(word.group(), word.group()), size.dim_param
                )
        del value.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    del graph.metadata_props[:]
    for function in proto.functions:
        del function.metadata_props[:]
