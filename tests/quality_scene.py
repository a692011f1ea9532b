"""The published scene of the quality heads (``published_quality``), as tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from atss_d2.checkpoint.foreign_names import our_names
from tests.reference import published_quality

NUM_LEVELS, NUM_IMAGES, NUM_CLASSES = 5, 2, 5


def tensor(name: str) -> Tensor:
    """A published array."""
    return torch.from_numpy(np.asarray(published_quality()[name]))


def of_levels(name: str) -> list[Tensor]:
    """The arrays of all levels."""
    return [tensor(f"{name}_{level}") for level in range(NUM_LEVELS)]


def of_images(name: str) -> list[Tensor]:
    """The arrays of both images."""
    return [tensor(f"{name}_{i}") for i in range(NUM_IMAGES)]


def grid_sizes() -> list[tuple[int, int]]:
    """(Hi, Wi) of all levels."""
    return [tuple(level.shape[-2:]) for level in of_levels("feat")]


def anchors() -> list[Tensor]:
    """L x (Ri, 4)."""
    return list(tensor("anchors").split([height * width for height, width in grid_sizes()]))


def instances(with_boxes: Sequence[bool] = (True, True)) -> list[Instances]:
    """The ground truth of both images, with or without boxes."""
    result = []
    for i, has_boxes in enumerate(with_boxes):
        boxes = tensor(f"gt_boxes_{i}")[: None if has_boxes else 0]
        classes = tensor(f"gt_classes_{i}")[: len(boxes)]
        result.append(Instances((288, 224), gt_boxes=Boxes(boxes), gt_classes=classes))
    return result


def our_names_of(detector: str) -> dict[str, str]:
    """mmdetection's names of the parameters of a published head -> ours, below the head."""
    prefix = f"{detector}.sd."
    keys = [key.removeprefix(prefix) for key in published_quality() if key.startswith(prefix)]
    names = our_names(keys, "mmdet", detector)
    return {key: name.removeprefix("head.") for key, name in names.items() if name is not None}


def load_published(head: nn.Module, detector: str) -> nn.Module:
    """Gives a head the published weights, and returns it."""
    shapes = {name: value.shape for name, value in head.state_dict().items()}
    weights = {
        name: tensor(f"{detector}.sd.{key}").reshape(shapes[name])
        for key, name in our_names_of(detector).items()
    }
    head.load_state_dict(weights)
    return head


def assert_published_gradients(head: nn.Module, case: str, detector: str, rtol: float) -> None:
    """The norms of the gradients of a head's parameters are the published ones."""
    parameters, names = dict(head.named_parameters()), our_names_of(detector)
    keys = [f"bbox_head.{key}" for key in published_quality()[f"{case}.grad_names"].tolist()]
    keys = [key.replace("bbox_head.bbox_head.", "bbox_head.") for key in keys]
    assert {names[key] for key in keys} == parameters.keys()
    for key, expected in zip(keys, tensor(f"{case}.grad_norms")):
        found = parameters[names[key]].grad.double().norm()
        torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-7)
