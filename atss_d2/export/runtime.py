"""Runs exported detectors of any format through one interface.

For programs without torch and this package, see ``examples/onnx_detect.py`` and
``tools/predict_exported.py``.
"""

from __future__ import annotations

import inspect
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision  # noqa: F401  (its operators are in the files)

from .checks import import_optional
from .metadata import KEY, Metadata


class Detections(NamedTuple):
    """Detections in N images, padded to D per image, see :class:`ExportableDetector`."""

    boxes: np.ndarray  # (N, D, 4) float32, XYXY in pixels of the given images
    scores: np.ndarray  # (N, D) float32
    classes: np.ndarray  # (N, D) int64
    num_detections: np.ndarray  # (N,) int64


class ExportedDetector(ABC):
    """A detector loaded from a file; :func:`load_exported` chooses the right subclass.

    Attributes:
        format: "onnx", "pt2", "aot_inductor" or "torchscript".
        metadata: The metadata saved with the model.
    """

    format: str
    metadata: Metadata

    def __call__(self, images: Any) -> Detections:
        """Detects objects.

        Args:
            images: (N, 3, H, W), 0..255, uint8 or float32, numpy array or tensor, with the size and
                the order of channels that ``metadata`` describes.

        Raises:
            ValueError: ``images`` has another shape or type.
        """
        return Detections(*map(np.asarray, self._run(self._check(np.asarray(images)))))

    @abstractmethod
    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        """Returns four arrays, for images of the type that the file takes."""

    def _check(self, images: np.ndarray) -> np.ndarray:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape (N, 3, height, width), got {images.shape}")
        min_size = self.metadata.min_size
        if min(images.shape[2:]) < min_size or len(images) == 0:
            raise ValueError(
                f"images must be at least one, of {min_size} x {min_size} pixels or more, got "
                f"shape {images.shape}"
            )
        wanted = np.dtype(self.metadata.input_dtype)
        if images.dtype not in (np.uint8, np.float32):
            raise ValueError(f"images must be uint8 or float32, got {images.dtype}")
        if images.dtype != wanted and wanted == np.uint8:
            raise ValueError(
                "this file takes uint8 images, got float32: round them, or export it with a "
                "float32 sample"
            )
        return np.ascontiguousarray(images, dtype=wanted)


class OnnxDetector(ExportedDetector):
    """Runs an ``.onnx`` file in ONNX Runtime."""

    format = "onnx"

    def __init__(self, path: str | os.PathLike[str], *, num_threads: int | None = None) -> None:
        """
        Args:
            path: The file.
            num_threads: Number of threads. Default: ONNX Runtime's choice.
        """
        onnxruntime = import_optional("onnxruntime")
        options = onnxruntime.SessionOptions()
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self._session = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # the only common base class of its errors
            raise ValueError(
                f"'{path}' is not a model that ONNX Runtime can run: {error}"
            ) from error
        properties = self._session.get_modelmeta().custom_metadata_map
        self.metadata = _read_metadata(path, properties.get(KEY))

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        return self._session.run(list(Detections._fields), {"images": images})


class _TorchDetector(ExportedDetector):
    """Runs a function on tensors on one device."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._function: Any = None

    def _run(self, images: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            outputs = self._function(torch.from_numpy(images).to(self._device))
        return [x.cpu().numpy() for x in outputs]


class Pt2Detector(_TorchDetector):
    """Runs a ``.pt2`` file of ``torch.export``."""

    format = "pt2"

    def __init__(self, path: str | os.PathLike[str], *, device: str = "cpu") -> None:
        """
        Args:
            path: The file.
            device: The device that the file was exported on.
        """
        super().__init__(device)
        extra_files = {KEY: ""}
        program = torch.export.load(os.fspath(path), extra_files=extra_files)
        self.metadata = _read_metadata(path, extra_files[KEY])
        # See export_pt2.
        has_guards = "check_guards" in inspect.signature(program.module).parameters
        self._function = program.module(**({"check_guards": False} if has_guards else {}))


class AotInductorDetector(_TorchDetector):
    """Runs an AOTInductor package."""

    format = "aot_inductor"

    def __init__(self, path: str | os.PathLike[str], *, device: str = "cpu") -> None:
        """
        Args:
            path: The file.
            device: The device that it was compiled for.
        """
        super().__init__(device)
        self._function = torch._inductor.aoti_load_package(os.fspath(path))
        self.metadata = _read_metadata(path, self._function.get_metadata().get(KEY))


class TorchScriptDetector(_TorchDetector):
    """Runs a TorchScript file."""

    format = "torchscript"

    def __init__(self, path: str | os.PathLike[str], *, device: str = "cpu") -> None:
        """
        Args:
            path: The file.
            device: The device to run it on.
        """
        super().__init__(device)
        extra_files = {KEY: ""}
        self._function = torch.jit.load(
            os.fspath(path), map_location=self._device, _extra_files=extra_files
        )
        self.metadata = _read_metadata(path, extra_files[KEY])


def load_exported(path: str | os.PathLike[str], **options: Any) -> ExportedDetector:
    """Loads a file written by one of the export functions; detects the format from its content.

    Args:
        path: The file.
        options: Arguments of the format's class, such as ``device`` or ``num_threads``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an exported detector; the message says why.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    return _class_of(path)(path, **options)


def _class_of(path: Path) -> type[ExportedDetector]:
    if not zipfile.is_zipfile(path):
        if path.suffix == ".onnx":
            return OnnxDetector
        raise ValueError(f"'{path}' is not an exported detector, or it is damaged: export it again")
    with zipfile.ZipFile(path) as archive:
        # All entries are in one folder, named after the file.
        names = [name.partition("/")[2] for name in archive.namelist()]
    if any(name.startswith("data/aotinductor/") for name in names):
        return AotInductorDetector
    if any(name.startswith("models/") for name in names):
        return Pt2Detector
    if any(name.startswith("code/") for name in names):
        return TorchScriptDetector
    raise ValueError(
        f"'{path}' is not an exported detector: it has neither a graph of torch.export nor code of "
        "TorchScript (a checkpoint is to be exported first)"
    )


def _read_metadata(path: str | os.PathLike[str], text: str | bytes | None) -> Metadata:
    if not text:
        raise ValueError(f"'{path}' was not exported by atss_d2: it has no metadata '{KEY}'")
    try:
        return Metadata.from_json(text)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
