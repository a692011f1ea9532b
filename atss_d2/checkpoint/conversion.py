"""Converts the weights of other implementations of ATSS to ours.

:func:`convert_state_dict` is a pure function of a state dict. Weights that do not fit raise an
error; the :class:`ConversionReport` says what happened to every key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from .architecture import infer_architecture
from .conventions import Convention, get_convention
from .foreign_names import our_names, reason_to_leave, recognize
from .loading import CheckpointError
from .mmdet_heads import check_detector, recognize_detector
from .report import ConversionReport, KeyReport, format_shape

__all__ = ["Conversion", "ConversionError", "convert_state_dict"]

# Keys under which files keep the weights, and the prefix that DistributedDataParallel adds to every
# name.
_NESTS = ("model", "state_dict")
_PREFIX = "module."
_MAX_NESTED = 8

_EPS = FrozenBatchNorm2d(1).eps


class ConversionError(CheckpointError):
    """Weights do not fit; ``report`` says what happened to every key."""

    def __init__(self, message: str, report: ConversionReport) -> None:
        super().__init__(message)
        self.report = report


class Conversion(NamedTuple):
    """Weights in our names, and what happened to every key."""

    state_dict: dict[str, Tensor]
    report: ConversionReport


def convert_state_dict(
    state_dict: Mapping[str, Any],
    convention: str = "auto",
    *,
    detector: str = "auto",
    expected: nn.Module | Mapping[str, Tensor] | None = None,
) -> Conversion:
    """Converts the weights of the authors' release or of mmdetection to ours.

    Names change, and a few values: scalars of shape (1,) become 0-dimensional, other floating-point
    types become float32, and where an implementation's frozen BatchNorm adds no epsilon to the
    variance, the epsilon that Detectron2's adds is subtracted. A model with these weights and with
    the settings of the convention (:func:`atss_d2.checkpoint.apply_convention`) gives the
    original's results.

    Args:
        state_dict: Weights by name, with or without the prefix ``module.``, or a checkpoint with
            weights under ``model`` or ``state_dict``. It is not changed.
        convention: ``"authors"``, ``"mmdet"``, or ``"auto"`` to recognize it by the names.
        detector: Key of :data:`MMDET_HEADS`, or ``"auto"`` to recognize it by the names; the
            authors' release has only ``"atss"``.
        expected: The model to convert for, or its state dict. Default: the model that the weights
            describe, which may be any ResNet or ResNeXt with FPN that we can build, with or without
            deformable convolutions, with any number of classes.

    Returns:
        The weights and a report of all keys.

    Raises:
        CheckpointError: The weights do not fit; the message names the first keys that differ.
        ValueError: There is no such convention or detector.
    """
    weights = _find_weights(state_dict)
    convention = _recognized(weights) if convention == "auto" else convention
    settings = get_convention(convention)
    if detector == "auto":
        detector = recognize_detector(weights) if convention == "mmdet" else "atss"
    check_detector(detector, convention)
    left = {key: reason_to_leave(key, convention, detector) for key in weights}
    names = our_names([key for key in weights if left[key] is None], convention, detector)

    converted: dict[str, Tensor] = {}
    keys = []
    for key, value in weights.items():
        name = names.get(key)
        if left[key] is not None:
            keys.append(KeyReport("left", key, None, tuple(value.shape), left[key]))
        elif name is None or name in converted:
            note = f"{name} a second time" if name else ""
            keys.append(KeyReport("unexpected", key, None, tuple(value.shape), note))
        else:
            converted[name], note = _convert(name, value, settings)
            status = "changed" if note else "renamed"
            keys.append(KeyReport(status, key, name, tuple(value.shape), note))
    return _checked(converted, keys, convention, detector, expected)


def _checked(
    converted: dict[str, Tensor],
    keys: list[KeyReport],
    convention: str,
    detector: str,
    expected: nn.Module | Mapping[str, Tensor] | None,
) -> Conversion:
    """Compares the converted weights with the model."""
    architecture = None
    if expected is None:
        try:
            architecture = infer_architecture(converted, detector)
            expected = architecture.weights(convention)
        except CheckpointError as error:
            report = ConversionReport(convention, keys)
            refusal = report.refusal()
            message = f"{error}; {refusal}" if refusal else str(error)
            raise ConversionError(_no_fit(convention, message), report) from None
    elif isinstance(expected, nn.Module):
        expected = expected.state_dict()
    report = ConversionReport(
        convention,
        [_compared(key, converted, expected) for key in keys]
        + [
            KeyReport("missing", None, name, tuple(value.shape))
            for name, value in expected.items()
            # What losses have counted is not a weight.
            if name not in converted and not name.startswith("criterion.")
        ],
        architecture,
    )
    refusal = report.refusal()
    if refusal:
        raise ConversionError(_no_fit(convention, refusal), report)
    return Conversion(converted, report)


def _no_fit(convention: str, reason: str) -> str:
    return f"these weights do not fit the convention '{convention}': {reason}"


def _compared(
    key: KeyReport, converted: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> KeyReport:
    if key.ours is None:
        return key
    if key.ours not in expected:
        return key._replace(status="unexpected", note=f"would be {key.ours}")
    shape = expected[key.ours].shape
    if converted[key.ours].shape == shape:
        return key
    return key._replace(status="misshapen", note=f"{key.ours} is {format_shape(shape)}")


def _convert(name: str, value: Tensor, convention: Convention) -> tuple[Tensor, str]:
    """Returns the value for our name, and a note of what was changed."""
    notes = []
    value = value.detach()
    if value.is_floating_point() and value.dtype != torch.float32:
        notes.append(f"was {str(value.dtype).removeprefix('torch.')}")
        value = value.float()
    if name.startswith("head.scales.") and value.shape == (1,):
        notes.append("now 0-dimensional")
        value = value.reshape(())
    is_frozen_var = name.startswith("backbone.") and name.endswith(".norm.running_var")
    if is_frozen_var and not convention.frozen_bn_has_eps:
        notes.append(f"minus {_EPS:g}, which Detectron2's FrozenBatchNorm2d adds")
        value = value - _EPS
    return value, ", ".join(notes)


def _find_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of a file, by names without the prefix."""
    found = checkpoint
    for _ in range(_MAX_NESTED):  # a file may contain itself
        nest = next((name for name in _NESTS if isinstance(found.get(name), Mapping)), None)
        if nest is None:
            break
        found = found[nest]
    weights = {
        str(key): torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in found.items()
        if isinstance(value, (Tensor, np.ndarray))
    }
    if not weights:
        raise CheckpointError(
            "there are no weights in this file, neither at its top nor under "
            f"{' or '.join(_NESTS)}; it has {', '.join(map(str, list(found)[:5])) or 'nothing'}"
        )
    while all(key.startswith(_PREFIX) for key in weights):
        weights = {key.removeprefix(_PREFIX): value for key, value in weights.items()}
    return weights


def _recognized(weights: Mapping[str, Tensor]) -> str:
    convention = recognize(weights)
    if convention is not None:
        return convention
    if any(key.startswith(("head.cls_subnet.", "backbone.bottom_up.")) for key in weights):
        raise CheckpointError(
            "these weights have Detectron2's names already: load them as they are"
        )
    names = ", ".join(list(weights)[:5])
    raise CheckpointError(
        "these are neither the names of the authors' release (rpn.head...) nor those of "
        f"mmdetection (bbox_head...): {names}"
    )
