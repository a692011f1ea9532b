"""Exports with torch.export to a ``.pt2`` file, for images and batches of any size."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..modeling import ATSS
from ..modeling.nms import kept_by_joint_nms
from ..modeling.nms import kept_by_nms as kept_in_each_image
from ..plain.files import replacing
from .checks import (
    check_dtype,
    check_free_sizes,
    check_same_path,
    check_sample,
    check_suffix,
)
from .detector import ExportableDetector, to_precision
from .metadata import KEY, Metadata
from .swin import use_any_size_attention


def export_pt2(
    model: ATSS,
    sample: Tensor,
    path: str | os.PathLike[str],
    *,
    metadata: Metadata,
    with_nms: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a ``.pt2`` file, which needs only torch and torchvision to run.

    ::

        import torch, torchvision
        program = torch.export.load("model.pt2")
        boxes, scores, classes, num_detections = program.module(check_guards=False)(images)

    The guards that are turned off are about the memory layout of maps with a single cell, as small
    images have; no result depends on it.

    Args:
        model: A model in evaluation mode.
        sample: An image (1, 3, H, W), 0..255. Its type, uint8 or float32, becomes the input type;
            its size does not matter.
        path: The file, ending in ``.pt2``. Missing folders are created.
        metadata: Metadata to save with the model. Fields that this function determines are filled
            in.
        with_nms: See :class:`ExportableDetector`.
        dtype: Type of backbone and head: float32, bfloat16 or, on a GPU, float16.

    Returns:
        ``path``.

    Raises:
        ValueError: ``model`` cannot be exported, or an argument is invalid.
        RuntimeError: This torch is too old.
    """
    path = check_suffix(path, ".pt2")
    check_dtype(dtype, "pt2", model.device)
    program = export_program(model, sample, with_nms=with_nms, dtype=dtype)
    metadata = complete_metadata(metadata, sample, with_nms=with_nms, dtype=dtype)
    buffer = io.BytesIO()  # given a path, the archive would keep its temporary name
    with _quiet_serializer():
        torch.export.save(program, buffer, extra_files={KEY: metadata.to_json()})
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return path


@contextlib.contextmanager
def _quiet_serializer() -> Iterator[None]:
    """Silences a warning about the empty list of extra arguments of the loop over images."""
    logger = logging.getLogger("torch._export.serde.serialize")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.lru_cache
def _exports_loops() -> bool:
    """Returns whether this torch exports NMS in a loop over images; 2.11 does not, 2.14 does."""

    class Loop(nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
            classes = torch.zeros_like(scores, dtype=torch.int64)
            return kept_in_each_image(boxes, scores, classes, scores > 0, 0.5)

    example = torch.zeros(2, 5, 4), torch.zeros(2, 5)
    loggers = [logging.getLogger(name) for name in ("torch._dynamo", "torch.fx", "torch._export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.export(Loop(), example, dynamic_shapes=({0: Dim.DYNAMIC},) * 2)
    except Exception:  # the only common base class of torch's internal errors
        return False
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
    return True


@torch.no_grad()
def export_program(
    model: ATSS,
    sample: Tensor,
    *,
    with_nms: bool = True,
    dtype: torch.dtype = torch.float32,
    kept_by_nms: Callable[..., Tensor] | None = None,
) -> ExportedProgram:
    """Exports a model as a graph for any batch, height and width, see :func:`export_pt2`.

    Args:
        model: See :func:`export_pt2`, as for the next three.
        sample: An image.
        with_nms: Whether the graph includes NMS.
        dtype: Type of backbone and head.
        kept_by_nms: See :class:`ExportableDetector`. Default: NMS image by image if this torch can
            export it, otherwise a joint one.

    Raises:
        ValueError: ``model`` or ``sample`` cannot be exported.
        RuntimeError: This torch is too old.
    """
    if not hasattr(fx_config, "backed_size_oblivious"):
        raise RuntimeError(
            f"torch {torch.__version__} cannot export a detector for images of any size: install "
            "torch 2.7 or newer, or use TorchScript"
        )
    check_sample(sample)
    if kept_by_nms is None:
        kept_by_nms = kept_in_each_image if _exports_loops() else kept_by_joint_nms
    # In the usual memory layout: with channels last, exporters require that sides are not 1.
    model = to_precision(model, dtype).to(memory_format=torch.contiguous_format)
    use_any_size_attention(model)
    detector = ExportableDetector(model, with_nms=with_nms, kept_by_nms=kept_by_nms)
    # The values of the example do not matter. Its sides differ and are long enough for several
    # cells (and Swin windows) on every level, so that no two sizes are equal by chance.
    side = 8 * max(model.anchor_generator.strides)
    example = sample.new_zeros((2, 3, side + 1, side + 3), device=model.device)
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # Otherwise sizes of 1, as on the upper levels of small images, would be rejected.
    with fx_config.patch(backed_size_oblivious=True), warnings.catch_warnings():
        check_same_path(lambda images: detector.predict(detector.prepare(images)), example)
        warnings.simplefilter("ignore")  # the exporter and torchvision warn about their own code
        program = torch.export.export(detector, (example,), dynamic_shapes=(free,))
    check_free_sizes(program)
    _allow_single_cells(program)
    _drop_unused_symbols(program)
    return program


def _allow_single_cells(program: ExportedProgram) -> None:
    """Lets a program take small images that it would reject because of the memory layout of maps.

    For networks that permute their maps, such as ConvNeXt, the exporter requires more than one
    cell, as the layout of a single cell is ambiguous. No result depends on that, see
    :func:`check_same_path`.
    """
    images = next(node for node in program.graph.nodes if node.name == "images")
    for size in images.meta["val"].shape:
        allowed = program.range_constraints.get(size.node.expr) if hasattr(size, "node") else None
        if allowed is not None:
            program.range_constraints[size.node.expr] = type(allowed)(0, allowed.upper)


def _drop_unused_symbols(program: ExportedProgram) -> None:
    """Drops sizes that are left over from a second trace of the loop over images.

    Loading a file would warn about each of them.
    """
    used = set()
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            value = node.meta.get("val")
            sizes = value.shape if isinstance(value, Tensor) else [value]
            for size in sizes:
                if isinstance(size, torch.SymInt):
                    used |= size.node.expr.free_symbols
    for symbol in set(program.range_constraints) - used:
        if not symbol.name.startswith("s"):  # sizes of the input stay
            del program.range_constraints[symbol]


def complete_metadata(
    metadata: Metadata, sample: Tensor, *, with_nms: bool, dtype: torch.dtype
) -> Metadata:
    """Fills in the fields that an export's arguments determine."""
    return metadata.replace(
        input_dtype=str(sample.dtype).removeprefix("torch."),
        dtype=str(dtype).removeprefix("torch."),
        with_nms=with_nms,
    )
