"""Exports to AOTInductor: a ``.pt2`` package of machine code for this kind of processor."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..modeling import ATSS
from ..plain.files import replacing
from .checks import check_cpp_compiler, check_dtype, check_suffix
from .metadata import KEY, Metadata
from .pt2 import complete_metadata, export_program


def export_aot_inductor(
    model: ATSS,
    sample: Tensor,
    path: str | os.PathLike[str],
    *,
    metadata: Metadata,
    with_nms: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Compiles a model and writes a package that needs only torch and torchvision.

    Compiling takes minutes. ::

        import torch, torch._inductor, torchvision
        run = torch._inductor.aoti_load_package("model.pt2")
        boxes, scores, classes, num_detections = run(images)

    Args:
        model: A model in evaluation mode.
        sample: An image (1, 3, H, W), 0..255. Its type, uint8 or float32, becomes the input type of
            the package; its size does not matter.
        path: The file, ending in ``.pt2``. Missing folders are created.
        metadata: Metadata to save with the model. Fields that this function determines are filled
            in.
        with_nms: See :class:`ExportableDetector`.
        dtype: Type of backbone and head: float32, bfloat16 or, on a GPU, float16.

    Returns:
        ``path``.

    Raises:
        ValueError: ``model`` cannot be exported, or an argument is invalid.
        RuntimeError: There is no C++ compiler, or this torch is too old.
    """
    path = check_suffix(path, ".pt2")
    check_dtype(dtype, "aot_inductor", model.device)
    check_cpp_compiler()
    import torch._inductor

    program = export_program(model, sample, with_nms=with_nms, dtype=dtype)
    metadata = complete_metadata(metadata, sample, with_nms=with_nms, dtype=dtype)
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler warns about its own code
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(temporary),
            inductor_configs={"aot_inductor.metadata": {KEY: metadata.to_json()}},
        )
    return path
