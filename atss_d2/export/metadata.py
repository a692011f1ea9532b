"""Metadata, saved inside the file of an exported detector, for programs that run it."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import detectron2.data.transforms as T
import torch

from .. import __version__
from ..data.augmentation import ResizeByFactor
from ..modeling import ATSS

FORMAT_VERSION = 1
# Name of the entry in a file: in ONNX's ``metadata_props``, or ``extra_files`` of other formats.
KEY = "atss_d2"

INPUT_FORMATS = ("BGR", "RGB")
INPUT_DTYPES = ("uint8", "float32")
DTYPES = ("float32", "float16", "bfloat16", "int8")


@dataclass(frozen=True)
class Metadata:
    """How to prepare an image for an exported detector, and how to interpret its outputs.

    Resize an image (bilinearly), put its channels in order, and pass it as (N, 3, H, W) with values
    0..255; the detector itself normalizes and pads. Boxes are in pixels of the resized image.

    Args:
        class_names: Names of the K classes.
        category_ids: Ids of the classes in the data set, such as COCO's; empty if they are the
            class numbers, from 0.
        input_format: Order of the channels, "BGR" or "RGB".
        shortest_edge: Length to which the shorter side is resized, as Detectron2's
            ``ResizeShortestEdge`` does; None if it is not used.
        max_size: Maximum length of the longer side with ``shortest_edge``; None for no limit.
        resize_factor: Instead, the factor by which both sides are resized; None if it is not used.
        min_size: Minimum height and width of an image.
        input_dtype: Type of the images, "uint8" or "float32".
        dtype: Type of backbone and head: "float32", "float16", "bfloat16", or "int8" for dynamic
            quantization.
        with_nms: Whether the file returns detections; otherwise pre-NMS detections.
        max_detections: Maximum number of detections per image.
        iou_thresh: IoU above which NMS removes the box with the lower score.
        score_thresh: Minimum class score of a pre-NMS detection.
        config: Name of the model's config; "" if there is none.
        atss_d2_version: Version of the package that exported the file.
        torch_version: Version of torch that exported the file.
        format_version: Version of this description.
    """

    class_names: tuple[str, ...]
    input_format: str
    category_ids: tuple[int, ...] = ()
    shortest_edge: int | None = None
    max_size: int | None = None
    resize_factor: float | None = None
    min_size: int = 1
    input_dtype: str = "uint8"
    dtype: str = "float32"
    with_nms: bool = True
    max_detections: int = 100
    iou_thresh: float = 0.6
    score_thresh: float = 0.05
    config: str = ""
    atss_d2_version: str = ""
    torch_version: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Checks types and values.

        Raises:
            ValueError: A field has a wrong type or value; the message names it.
        """
        for name in ("class_names", "category_ids"):
            if isinstance(getattr(self, name), list):  # as JSON has it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _has_type(value, hints[field.name]):
                raise ValueError(f"metadata: {field.name} must be {field.type}, got {value!r}")
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"metadata: this atss_d2 reads format_version {FORMAT_VERSION}, got "
                f"{self.format_version}: export the model again, or install the atss_d2 that "
                f'exported it (its version was "{self.atss_d2_version}")'
            )
        for name, choices in (
            ("input_format", INPUT_FORMATS),
            ("input_dtype", INPUT_DTYPES),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"metadata: {name} must be one of {', '.join(choices)}, got "
                    f'"{getattr(self, name)}"'
                )
        for name in ("shortest_edge", "max_size", "resize_factor", "min_size", "max_detections"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"metadata: {name} must be > 0, got {value}")
        for name in ("iou_thresh", "score_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"metadata: {name} must be in [0, 1], got {getattr(self, name)}")
        if not self.class_names:
            raise ValueError("metadata: class_names is empty")
        if self.category_ids and len(set(self.category_ids)) != len(self.class_names):
            raise ValueError(
                f"metadata: category_ids must be {len(self.class_names)} different numbers, one "
                f"for each of class_names, got {list(self.category_ids)}"
            )
        if self.shortest_edge is not None and self.resize_factor is not None:
            raise ValueError(
                f"metadata: either shortest_edge or resize_factor, got {self.shortest_edge} and "
                f"{self.resize_factor}"
            )

    @classmethod
    def from_model(
        cls, model: ATSS, *, class_names: Sequence[str] | None = None, **fields: Any
    ) -> Metadata:
        """Creates metadata with the fields that a model determines.

        Args:
            model: The model to export.
            class_names: Names of the classes. Default: their numbers.
            fields: Other fields, such as those of :func:`resizing_of`, or ``config``.

        Raises:
            ValueError: The number of class names is not the model's number of classes, or a field
                has a wrong type or value.
        """
        if class_names is None:
            class_names = [str(i) for i in range(model.num_classes)]
        if len(class_names) != model.num_classes:
            raise ValueError(
                f"the model has {model.num_classes} classes, but there are {len(class_names)} "
                f"class names: {', '.join(class_names)}"
            )
        known = {
            "class_names": tuple(class_names),
            "input_format": model.input_format,
            "max_detections": model.max_detections_per_image,
            "iou_thresh": float(model.test_nms_thresh),
            "score_thresh": float(model.test_score_thresh),
            "atss_d2_version": __version__,
            "torch_version": torch.__version__,
        }
        return cls(**{**known, **fields})

    def replace(self, **fields: Any) -> Metadata:
        """Returns a copy with new values for some fields."""
        return dataclasses.replace(self, **fields)

    def to_json(self) -> str:
        """Returns the text that is saved in a file."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """Reads the text of :meth:`to_json`.

        Raises:
            ValueError: The text is invalid; the message says why.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise ValueError(f"metadata is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"metadata must be a JSON object, got {type(fields).__name__}")
        # For a later format, only its number can be checked.
        known = {field.name for field in dataclasses.fields(cls)}
        if fields.get("format_version") == FORMAT_VERSION:
            unknown = sorted(set(fields) - known)
            if unknown:
                raise ValueError(f"metadata has unknown keys: {', '.join(unknown)}")
        missing = [
            name for name in ("class_names", "input_format", "format_version") if name not in fields
        ]
        if missing:
            raise ValueError(f"metadata lacks {', '.join(missing)}")
        return cls(**{name: value for name, value in fields.items() if name in known})


def _has_type(value: object, hint: Any) -> bool:
    if isinstance(hint, types.UnionType):
        return any(_has_type(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        return isinstance(value, tuple) and all(_has_type(x, element) for x in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def resizing_of(augmentations: Sequence) -> dict[str, Any]:
    """Returns the fields that describe how a config resizes its test images.

    Args:
        augmentations: The instantiated augmentations of the config's test mapper.

    Returns:
        ``shortest_edge`` and ``max_size``, or ``resize_factor``, or nothing.

    Raises:
        ValueError: Metadata cannot describe the augmentations.
    """
    fields: dict[str, Any] = {}
    for augmentation in augmentations:
        if fields:
            raise ValueError(
                "an exported model describes one resizing of test images, got "
                f"{', '.join(type(x).__name__ for x in augmentations)}"
            )
        if isinstance(augmentation, ResizeByFactor):
            fields = {"resize_factor": float(augmentation.factor)}
        elif isinstance(augmentation, T.ResizeShortestEdge):
            lengths = set(augmentation.short_edge_length)
            if len(lengths) != 1:
                raise ValueError(
                    "an exported model describes one size of test images, got ResizeShortestEdge "
                    f"with {sorted(lengths)}"
                )
            fields = {"shortest_edge": int(lengths.pop())}
            if augmentation.max_size < 2**31:  # sys.maxsize means no limit
                fields["max_size"] = int(augmentation.max_size)
        else:
            raise ValueError(
                "an exported model describes ResizeShortestEdge or ResizeByFactor of test images, "
                f"not {type(augmentation).__name__}"
            )
    return fields
