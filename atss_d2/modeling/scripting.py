"""Modules that ``torch.jit.script`` compiles in place of those that it does not support.

Its compiler supports neither keyword-only arguments with defaults nor module constants nor
generators. The detector uses them anyway: a module's ``__prepare_scriptable__`` returns what is
compiled in its place. Backbone, head and everything that loops over images are compiled; from the
head's maps to detections, where no branch depends on a value, :meth:`ATSS.forward_inference` itself
is traced.

Shapes: N images, L levels of size Hi x Wi, K classes, A anchors per location, D detections.
"""

# Without `from __future__ import annotations`: the compiler needs types, not their names.
import contextlib
import sys
import warnings
from collections.abc import Iterator

import torch
from detectron2.structures import Boxes, ImageList, Instances
from omegaconf import ListConfig
from torch import Tensor, nn

from ..warning_filters import filter_third_party_warnings

_SAMPLE_SIDE = 4  # side of a map while tracing, in cells; the trace takes any size


class ScriptableATSS(nn.Module):
    """An :class:`ATSS` for inference, in the form that ``scripting_with_instances`` takes.

    The fields are ``{"pred_boxes": Boxes, "scores": Tensor, "pred_classes": Tensor}``. As in
    Detectron2's own detectors, boxes are in pixels of the input images; the caller scales them to
    the original size.
    """

    padding_constraints: dict[str, int]

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: An ATSS in evaluation mode, whose modules are shared.

        Raises:
            RuntimeError: ``model`` is in training mode, or Python is too new.
        """
        super().__init__()
        check_scriptable(model)
        self.backbone = model.backbone
        self.head = model.head
        self.head_in_features = list(model.head_in_features)
        self.size_divisibility = int(model.backbone.size_divisibility)
        self.padding_constraints = dict(model.backbone.padding_constraints)
        self.register_buffer("pixel_mean", model.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", model.pixel_std, persistent=False)
        self.detect = trace_on_maps(_DetectionsOfImage(model), model)

    def forward(self, batched_inputs: list[dict[str, Tensor]]):
        """Takes inputs of :class:`ATSS`, tensors only, and returns Instances of every image."""
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        predictions = self.head([features[name] for name in self.head_in_features])
        results: list[Instances] = []
        for i, (height, width) in enumerate(images.image_sizes):
            maps: list[Tensor] = []
            for prediction in predictions:
                for level in prediction:
                    maps.append(level[i : i + 1])
            boxes, scores, classes = self.detect(maps, torch.tensor([height, width]))
            results.append(
                Instances(
                    (height, width), pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes
                )
            )
        return results

    def preprocess_image(self, batched_inputs: list[dict[str, Tensor]]) -> ImageList:
        """Normalizes and pads images, like ``DenseDetector.preprocess_image``."""
        images = [
            (x["image"].to(self.pixel_mean.device) - self.pixel_mean) / self.pixel_std
            for x in batched_inputs
        ]
        return ImageList.from_tensors(
            images, self.size_divisibility, padding_constraints=self.padding_constraints
        )


class _DetectionsOfImage(nn.Module):
    """``forward_inference`` of a detector for one image, tensors in and out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Their buffers move with the traced module.
        self.anchor_generator = model.anchor_generator
        self.box2box_transform = model.box2box_transform
        self.__dict__["_model"] = model  # not a submodule: excludes backbone and head

    def forward(self, maps: list[Tensor], image_size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the detections of one image.

        Args:
            maps: The head's output for one image: L logits, L deltas, L centerness maps.
            image_size: (height, width).

        Returns:
            boxes (D, 4), scores (D,) and classes (D,).
        """
        num_levels = len(self._model.head_in_features)
        predictions = [maps[i : i + num_levels] for i in range(0, len(maps), num_levels)]
        # Only the sizes of the features matter, and those are the sizes of the logits.
        (found,) = self._model.forward_inference(
            ImageList(maps[0], [image_size]), predictions[0], predictions
        )
        return found.pred_boxes.tensor, found.scores, found.pred_classes


def check_scriptable(model: nn.Module) -> None:
    """Checks what the compiler would not report clearly, and removes other obstacles.

    Args:
        model: A detector. omegaconf lists that LazyConfig leaves in its modules become plain lists.

    Raises:
        RuntimeError: ``model`` is in training mode, or Python is too new.
    """
    if sys.version_info >= (3, 14):
        raise RuntimeError(
            "TorchScript's compiler does not know Python "
            f"{sys.version_info[0]}.{sys.version_info[1]}: script with Python 3.13 or older, or "
            "trace the model, or use another format"
        )
    if model.training:
        raise RuntimeError("only a model in evaluation mode can be scripted: call model.eval()")
    import detectron2.export.torchscript_patch  # noqa: F401  (lets Detectron2's FPN be compiled)

    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, ListConfig):
                setattr(module, name, list(value))


@torch.no_grad()
def trace_on_maps(module: nn.Module, model: nn.Module) -> torch.jit.ScriptModule:
    """Traces what is computed from the head's output, so that scripted code can call it.

    Args:
        module: Takes maps of one image and (height, width), as :class:`_DetectionsOfImage`.
        model: The detector whose maps they are.
    """
    shapes = model.backbone.output_shape()
    weight = next(model.head.parameters())
    predictions = model.head(
        [
            weight.new_zeros(1, shapes[name].channels, _SAMPLE_SIDE, _SAMPLE_SIDE)
            for name in model.head_in_features
        ]
    )
    # Logits of 0, so that there are candidates.
    maps = [torch.zeros_like(level) for prediction in predictions for level in prediction]
    with without_jit_warnings():
        return torch.jit.trace(module.eval(), (maps, torch.tensor([64, 64])), check_trace=False)


@contextlib.contextmanager
def without_jit_warnings() -> Iterator[None]:
    """Silences warnings about shapes that tracing takes for constants.

    These are the number of coordinates of a box and the like; the tests run the traced module on
    images of other sizes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        filter_third_party_warnings()
        yield
