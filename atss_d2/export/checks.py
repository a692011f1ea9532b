"""Checks whether a model can be exported, before an exporter runs."""

from __future__ import annotations

import importlib
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from ..modeling import ATSS
from ..modeling.anchor_generator import lays_out_cells
from ..modeling.deform_conv import DeformConv2d

# Minimum opset at which onnxscript translates torchvision's operator to a valid file.
MIN_OPSET = 18
MIN_OPSET_DEFORM = 19


def check_exportable(model: ATSS) -> None:
    """Checks the assumptions of :class:`ExportableDetector`.

    Raises:
        ValueError: The model is not an ATSS, is in training mode, or has a part that cannot be
            exported.
    """
    if not isinstance(model, ATSS):
        name, hint = type(model).__name__, ""
        if hasattr(model, "proposal_generator"):
            hint = ": trace an R-CNN with detectron2.export.TracingAdapter"
        raise ValueError(f"can export an ATSS, got {name}{hint}")
    if model.training:
        raise ValueError("only a model in evaluation mode can be exported: call model.eval()")
    if not lays_out_cells(model.anchor_generator):
        raise ValueError(
            f"can export anchors on a grid, as DefaultAnchorGenerator makes them, but not those of "
            f"{type(model.anchor_generator).__name__}"
        )
    square_size = (model.backbone.padding_constraints or {}).get("square_size", 0)
    if square_size > 0:
        raise ValueError(
            f"the backbone wants images padded to a square of {square_size} pixels, which cannot "
            "be exported: set its square_pad to 0"
        )


def check_sample(sample: Tensor) -> None:
    """Checks the image that an exporter runs the model on.

    Raises:
        ValueError: It is not a (1, 3, H, W) uint8 or float32 image.
    """
    if not isinstance(sample, Tensor) or str(sample.dtype) not in ("torch.uint8", "torch.float32"):
        kind = sample.dtype if isinstance(sample, Tensor) else type(sample).__name__
        raise ValueError(f"the sample must be a uint8 or float32 tensor, got {kind}")
    if sample.ndim != 4 or sample.shape[0] != 1 or sample.shape[1] != 3 or 0 in sample.shape:
        raise ValueError(
            f"the sample must have shape (1, 3, height, width), got {tuple(sample.shape)}"
        )


@torch.no_grad()
def check_same_path(network: Callable[[Tensor], object], sample: Tensor) -> None:
    """Checks that a network calls the same functions for images of all sizes.

    A graph records only the functions called for one image, and would be silently wrong for sizes
    at which Python code takes another branch. The check runs without computing values.

    Args:
        network: Takes images (N, 3, H, W).
        sample: Sets the type and device of the images.

    Raises:
        ValueError: The functions depend on the size or on the content of an image; the message
            names the sizes and the functions.
    """
    calls = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for size in _SIZES:
            images = torch.empty((2, 3, *size), dtype=sample.dtype, device=sample.device)
            try:
                with _Recorder() as recorder:
                    network(images)
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                raise ValueError(
                    f"the network looks at a value that it computed ({error.func}), which a graph "
                    "cannot: use TorchScript with method scripting"
                ) from error
            calls[size] = recorder.names
    usual_size = _SIZES[-1]
    for size in _SIZES:
        for name, usual_name in itertools.zip_longest(calls[size], calls[usual_size]):
            if name != usual_name:
                raise ValueError(
                    "the network computes differently for small images, which a graph cannot: "
                    f"where it calls {usual_name} for {usual_size[0]} x {usual_size[1]} pixels, it "
                    f"calls {name} for {size[0]} x {size[1]}"
                )


# A single cell on every level, a single row, a single column, and many cells.
_SIZES = ((1, 1), (1, 1500), (1500, 1), (1500, 1600))


class _Recorder(TorchFunctionMode):
    """Records which torch functions Python code calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def check_free_sizes(program: ExportedProgram) -> None:
    """Checks that no size of the example became a constant in a program.

    Raises:
        ValueError: One did; the message says where.
    """
    # Other guards are about the memory layout of maps with one cell; no result depends on it.
    for guard in getattr(program, "_guards_code", ()):
        if re.search(r"== \d+$", guard):
            raise ValueError(
                "the network took a size that depends on the image for a constant, as len() and "
                f"int() do: {guard}"
            )


def check_suffix(path: str | os.PathLike[str], suffix: str) -> Path:
    """Checks the name of an output file.

    Raises:
        ValueError: It does not end in ``suffix``.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"'{path}' must end in {suffix}")
    return path


def check_dtype(dtype: torch.dtype, format_name: str, device: torch.device) -> None:
    """Checks that a format supports this dtype of backbone and head on the given device.

    Raises:
        ValueError: It does not; the message lists the supported dtypes.
    """
    allowed = {
        "torchscript": [torch.float32, torch.bfloat16],
        "pt2": [torch.float32, torch.bfloat16],
        "aot_inductor": [torch.float32, torch.bfloat16],
        "onnx": [torch.float32, torch.float16],  # ONNX Runtime has no bfloat16 convolution on CPUs
    }[format_name]
    if device.type != "cpu":
        allowed = [torch.float32, torch.float16, torch.bfloat16]
    if dtype not in allowed:
        raise ValueError(
            f"{format_name} on {device.type} runs backbone and head in one of "
            f"{', '.join(map(str, allowed))}, got {dtype}"
        )


def check_opset(model: ATSS, opset: int) -> None:
    """Checks that this ONNX opset has all operators of the model.

    Raises:
        ValueError: It does not; the message names the minimum opset.
    """
    if opset < MIN_OPSET:
        raise ValueError(f"opset must be >= {MIN_OPSET}, got {opset}")
    if opset < MIN_OPSET_DEFORM and has_deform_conv(model):
        raise ValueError(
            "the model has deformable convolutions (DCN), which ONNX knows from opset "
            f"{MIN_OPSET_DEFORM} on, got opset {opset}"
        )


def check_cpp_compiler() -> None:
    """Checks that there is a C++ compiler for AOTInductor.

    Raises:
        RuntimeError: There is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # torch has moved its own class for this error before
        raise RuntimeError(
            "AOTInductor needs a C++ compiler and found none: install g++ (apt install g++), name "
            "one in the environment variable CXX, or export to pt2 or onnx instead"
        ) from error


def has_deform_conv(model: ATSS) -> bool:
    """Returns whether any layer of the model is a deformable convolution."""
    return any(isinstance(module, DeformConv2d) for module in model.modules())


def import_optional(name: str) -> ModuleType:
    """Imports a package that is needed only for exports.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed: pip install 'atss_d2[export]'", name=name
        ) from error
