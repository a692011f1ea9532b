"""Test-time augmentation of dense detectors: several scales and flips, merged into one result.

This does what :mod:`detectron2.modeling.test_time_augmentation` does for R-CNN, for every model
that returns boxes, scores and classes.

Shapes: D detections.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.images import read_image
from .box_voting import soft_vote, vote
from .build import detections_per_image
from .choices import check_choice
from .geometry import box_areas
from .nms import batched_nms
from .postprocess import clip_boxes
from .precision import widen

Detections = tuple[Tensor, Tensor, Tensor]  # boxes (D, 4), scores (D,), classes (D,)

_MERGES = ("nms", "vote", "soft_vote")


class DenseDetectorWithTTA(nn.Module):
    """A dense detector that runs on every image at several scales and mirrored.

    It is called like the model in it: it takes a list of dataset dicts and returns a list of
    ``{"instances": Instances}`` with ``pred_boxes``, ``scores`` and ``pred_classes``. The model may
    be :class:`ATSS`, Detectron2's RetinaNet or FCOS, or any other whose detections have these three
    fields.

    For every scale, an image is resized from its original size in ``file_name``. Only without a
    ``file_name`` is the tensor ``image`` used instead, which a data loader may already have
    resized. Detections are merged and returned in the resolution ``height`` x ``width`` of the
    dataset dict, or else that of the image. (Means and IoUs of boxes are the same at any
    resolution.)

    Example::

        model = DenseDetectorWithTTA(Predictor(config, weights).model, min_sizes=[600, 800, 1000])
        instances = model([{"file_name": "street.jpg"}])[0]["instances"]
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        min_sizes: Sequence[int] = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
        max_size: int | Sequence[int] = 4000,
        size_ranges: Sequence[tuple[float, float]] | None = None,
        flip: bool = True,
        batch_size: int = 2,
        merge: str = "vote",
        iou_thresh: float | None = None,
        soft_vote_score_thresh: float = 0.05,
        max_detections_per_image: int = 1000,
        input_format: str | None = None,
    ) -> None:
        """
        Args:
            model: The detector, with its own score threshold, NMS and number of detections, which
                apply to every pass. ``DenseDetectorWithTTA(cfg, model)`` takes the rest from
                Detectron2's ``TEST.AUG``.
            min_sizes: Shorter side of the image at every scale, pixels.
            max_size: Maximum longer side, for all scales or for each.
            size_ranges: For every scale (low, high): its detections count when low <= sqrt(box
                area) < high, in pixels of the scaled image. Default: all count.
            flip: Whether to also run on the mirrored image at every scale.
            batch_size: Maximum number of scaled images per call of the model. They have equal
                sizes, such as an image and its mirror image.
            merge: "nms"; "vote", see :func:`~atss_d2.modeling.box_voting.vote`; or "soft_vote",
                see :func:`~atss_d2.modeling.box_voting.soft_vote`.
            iou_thresh: IoU threshold of the merge. Default: 0.66 for voting, the model's
                ``test_nms_thresh`` for NMS.
            soft_vote_score_thresh: Minimum lowered score of an absorbed detection ("soft_vote").
            max_detections_per_image: Maximum number of detections per image after the merge.
            input_format: Channel order in which files are read, such as "BGR". Default: the
                model's ``input_format``.

        Raises:
            ValueError: An argument is invalid, or the model lacks what a default needs.
        """
        super().__init__()
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self.model = model
        min_sizes = list(min_sizes)
        max_sizes = [max_size] * len(min_sizes) if np.isscalar(max_size) else list(max_size)
        if size_ranges is None:
            size_ranges = [(0.0, math.inf)] * len(min_sizes)
        self._check_scales(min_sizes, max_sizes, size_ranges)
        self.resizes = [T.ResizeShortestEdge(*sizes) for sizes in zip(min_sizes, max_sizes)]
        self.size_ranges = [(low, high) for low, high in size_ranges]
        self.flip = flip
        self.batch_size = batch_size
        self.merge = merge
        self.iou_thresh = self._default_iou_thresh() if iou_thresh is None else iou_thresh
        self.soft_vote_score_thresh = soft_vote_score_thresh
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format or self._default_input_format()
        self._check_merge()
        self.train(model.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Reads the passes and the number of detections from Detectron2's keys."""
        return {
            "model": model,
            "min_sizes": cfg.TEST.AUG.MIN_SIZES,
            "max_size": cfg.TEST.AUG.MAX_SIZE,
            "flip": cfg.TEST.AUG.FLIP,
            "max_detections_per_image": detections_per_image(cfg),
            "input_format": cfg.INPUT.FORMAT,
        }

    def _check_scales(
        self,
        min_sizes: list[int],
        max_sizes: list[int],
        size_ranges: Sequence[tuple[float, float]],
    ) -> None:
        if not min_sizes:
            raise ValueError("min_sizes is empty: give at least one shorter side of the image")
        for name, values in (("max_size", max_sizes), ("size_ranges", size_ranges)):
            if len(values) != len(min_sizes):
                raise ValueError(
                    f"min_sizes are {len(min_sizes)} scales, but {name} has {len(values)} entries"
                )
        for name, sizes in (("min_sizes", min_sizes), ("max_size", max_sizes)):
            if min(sizes) < 1:
                raise ValueError(f"{name} must be >= 1 pixel, got {min(sizes)}")
        for size_range in size_ranges:
            if len(size_range) != 2 or not size_range[0] < size_range[1]:
                raise ValueError(f"size_ranges must be (low, high), low < high, got {size_range}")

    def _check_merge(self) -> None:
        check_choice("merge", self.merge, _MERGES)
        if not 0 < self.iou_thresh <= 1:
            raise ValueError(f"iou_thresh must be in (0, 1], got {self.iou_thresh}")
        for name in ("batch_size", "max_detections_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")

    def _default_iou_thresh(self) -> float:
        if self.merge != "nms":
            return 0.66
        if not hasattr(self.model, "test_nms_thresh"):
            raise ValueError(
                f"{type(self.model).__name__} has no test_nms_thresh: give iou_thresh for NMS"
            )
        return self.model.test_nms_thresh

    def _default_input_format(self) -> str:
        input_format = getattr(self.model, "input_format", None)
        if input_format is None:  # Detectron2's FCOS
            raise ValueError(
                f"{type(self.model).__name__} does not say the channel order of its images: give "
                f'input_format, "BGR" or "RGB", as in its data loader'
            )
        return input_format

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detects objects.

        Args:
            batched_inputs: Dataset dicts with ``file_name`` or ``image`` (C, H, W), and optionally
                ``height`` and ``width``.

        Returns:
            For every image ``{"instances": Instances}``, best score first. The detections of an
            image do not depend on the other images.

        Raises:
            RuntimeError: The model is in training mode.
            ValueError: A dataset dict has neither ``file_name`` nor ``image``.
        """
        if self.model.training:
            raise RuntimeError(
                "DenseDetectorWithTTA cannot be trained: call eval(), and train the model in it"
            )
        detections: dict[tuple[int, int], Detections] = {}  # by index of image and pass
        output_sizes = []
        waiting = defaultdict(list)  # by size: GroupNorm would see padding
        for index, dataset_dict in enumerate(batched_inputs):
            image = self._read(dataset_dict)  # (H, W, C)
            height = dataset_dict.get("height", image.shape[0])
            width = dataset_dict.get("width", image.shape[1])
            output_sizes.append((height, width))
            for number, a_pass in enumerate(self._passes(image, dataset_dict, (height, width))):
                batch = waiting[a_pass.inputs["image"].shape]
                batch.append(((index, number), a_pass))
                if len(batch) == self.batch_size:
                    self._run(batch, detections)
        for batch in waiting.values():
            if batch:
                self._run(batch, detections)
        num_passes = len(self.resizes) * (2 if self.flip else 1)
        return [
            {"instances": self._merge([detections[i, n] for n in range(num_passes)], output_size)}
            for i, output_size in enumerate(output_sizes)
        ]

    def _read(self, dataset_dict: dict) -> np.ndarray:
        if "file_name" in dataset_dict:
            return read_image(dataset_dict["file_name"], self.input_format)
        if "image" in dataset_dict:
            return dataset_dict["image"].permute(1, 2, 0).cpu().numpy()
        raise ValueError(f"a dataset dict needs file_name or image, got {list(dataset_dict)}")

    def _passes(
        self, image: np.ndarray, dataset_dict: dict, output_size: tuple[int, int]
    ) -> Iterator[_Pass]:
        for resize, size_range in zip(self.resizes, self.size_ranges):
            aug_input = T.AugInput(image)
            resize(aug_input)
            scaled = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
            for flipped in (False, True) if self.flip else (False,):
                inputs = {
                    **dataset_dict,
                    "image": scaled.flip(2) if flipped else scaled,
                    # Detections are in the scaled image, where sizes are measured.
                    "height": scaled.shape[1],
                    "width": scaled.shape[2],
                }
                yield _Pass(inputs, flipped, size_range, output_size)

    def _run(
        self,
        batch: list[tuple[tuple[int, int], _Pass]],
        detections: dict[tuple[int, int], Detections],
    ) -> None:
        outputs = self.model([a_pass.inputs for _, a_pass in batch])
        for (key, a_pass), output in zip(batch, outputs):
            detections[key] = a_pass.map_back(output["instances"])
        batch.clear()

    def _merge(self, detections: list[Detections], output_size: tuple[int, int]) -> Instances:
        boxes, scores, classes = (torch.cat(field) for field in zip(*detections))
        if self.merge == "nms":
            keep = batched_nms(boxes, scores, classes, self.iou_thresh)
            boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
        elif self.merge == "vote":
            boxes, scores, classes = vote(boxes, scores, classes, iou_thresh=self.iou_thresh)
        else:
            boxes, scores, classes = soft_vote(
                boxes,
                scores,
                classes,
                iou_thresh=self.iou_thresh,
                score_thresh=self.soft_vote_score_thresh,
            )
        merged = Instances(output_size)
        merged.pred_boxes = Boxes(boxes)
        merged.scores = scores
        merged.pred_classes = classes
        return merged[: self.max_detections_per_image]


class _Pass(NamedTuple):
    """One pass over an image."""

    inputs: dict  # what the model is given
    flipped: bool
    size_range: tuple[float, float]
    output_size: tuple[int, int]  # (height, width) of the unscaled image

    def map_back(self, instances: Instances) -> Detections:
        """Returns the detections in the size range, in pixels of the unscaled image."""
        boxes, scores = widen(instances.pred_boxes.tensor), widen(instances.scores)
        low, high = self.size_range
        sizes = box_areas(boxes).sqrt()
        keep = (sizes >= low) & (sizes < high)
        boxes = boxes[keep]
        if self.flipped:
            x1, y1, x2, y2 = boxes.unbind(dim=1)
            width = self.inputs["width"]
            boxes = torch.stack((width - x2, y1, width - x1, y2), dim=1)
        scale_x = self.output_size[1] / self.inputs["width"]
        scale_y = self.output_size[0] / self.inputs["height"]
        boxes = boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
        return clip_boxes(boxes, self.output_size), scores[keep], instances.pred_classes[keep]
