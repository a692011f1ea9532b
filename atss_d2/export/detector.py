"""The detector in a form for exporters: a batch of images in, plain tensors out.

Shapes: N images, L levels of size Hi x Wi, K classes, A anchors per location, Ri = Hi x Wi x A, T
pre-NMS detections, D detections.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..modeling import ATSS
from ..modeling.nms import kept_by_nms
from ..modeling.postprocess import best_of_batch, detections_of_batch, pre_nms_detections
from ..modeling.pre_nms import NO_SCORE
from .checks import check_exportable


class ExportableDetector(nn.Module):
    """An :class:`ATSS` whose inference can be exported.

    It normalizes and pads as the model does, runs the same backbone and head, and computes the same
    :func:`.pre_nms_detections`, with fixed shapes; only NMS differs, :func:`.detections_of_batch`.
    No branch depends on a value, and shapes depend only on the shape of the input. So an exported
    detector takes any batch, height and width, down to images of one pixel.

    The model is shared, not copied.
    """

    def __init__(
        self,
        model: ATSS,
        *,
        with_nms: bool = True,
        kept_by_nms: Callable[..., Tensor] = kept_by_nms,
    ) -> None:
        """
        Args:
            model: A model in evaluation mode. Its backbone and head may have half precision, see
                :func:`to_precision`; everything before and after them is computed in float32.
            with_nms: Whether to return detections, or all pre-NMS detections for an NMS elsewhere.
            kept_by_nms: A replacement for :func:`atss_d2.modeling.nms.kept_by_nms`, for a runtime
                with its own NMS.

        Raises:
            ValueError: ``model`` cannot be exported; the message says why.
        """
        super().__init__()
        check_exportable(model)
        self.model = model
        self.with_nms = with_nms
        self.kept_by_nms = kept_by_nms
        self.dtype = next(model.head.parameters()).dtype
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detects objects in a batch of images.

        Args:
            images: (N, 3, H, W), 0..255, uint8 or float32, channels in the order of the model's
                ``input_format``.

        Returns:
            boxes (N, D, 4) XYXY in pixels of the given images, scores (N, D), classes (N, D) int64
            and num_detections (N,) int64, D = ``max_detections_per_image``. The best score comes
            first; rows from num_detections on have box 0, score 0 and class -1.

            Without NMS, D is T = L x ``test_topk_candidates``, for pre-NMS detections; score
            voting, which follows NMS, is then left to the caller.
        """
        return self.postprocess(self.predict(self.prepare(images)), images.shape[-2:])

    def prepare(self, images: Tensor) -> Tensor:
        """Normalizes images, and zero-pads them as Detectron2's ``ImageList.from_tensors`` does."""
        model = self.model
        images = (images.float() - model.pixel_mean) / model.pixel_std
        return self._pad(images).to(self.dtype)

    def predict(self, images: Tensor) -> list[list[Tensor]]:
        """Returns the head's maps: L logits, L deltas, and L centerness maps if predicted."""
        features = self.model.backbone(images)
        return self.model.head([features[name] for name in self.model.head_in_features])

    def postprocess(
        self, predictions: list[list[Tensor]], image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Computes the outputs of :meth:`forward` from the maps and the size of the images."""
        model = self.model
        boxes, scores, classes = pre_nms_detections(
            model.as_predictions(predictions),
            self._anchors(predictions[0]),
            image_size,
            **model.pre_nms_options(),
            fixed_shapes=True,
        )
        if self.with_nms:
            boxes, scores, classes = detections_of_batch(
                boxes,
                scores,
                classes,
                nms_thresh=model.test_nms_thresh,
                max_detections=model.max_detections_per_image,
                score_voting=model.score_voting,
                kept_by_nms=self.kept_by_nms,
            )
        else:
            boxes, scores, classes = best_of_batch(boxes, scores, classes, scores.shape[1])
        is_taken = scores > NO_SCORE  # (N, D)
        return (
            torch.where(is_taken[..., None], boxes, 0.0),
            torch.where(is_taken, scores, 0.0),
            torch.where(is_taken, classes, -1),
            is_taken.sum(dim=1),
        )

    def _pad(self, images: Tensor) -> Tensor:
        backbone = self.model.backbone
        constraints = backbone.padding_constraints or {}
        divisor = constraints.get("size_divisibility", backbone.size_divisibility)
        if divisor <= 1:
            return images
        height, width = images.shape[-2:]
        # Not -width % divisor: map sizes would become formulas so long that files load slowly.
        new_height, new_width = (
            (side + divisor - 1) // divisor * divisor for side in (height, width)
        )
        return F.pad(images, (0, new_width - width, 0, new_height - height))

    def _anchors(self, maps: list[Tensor]) -> list[Tensor]:
        """Computes the anchors (Ri, 4) of Detectron2's generator, which cannot be exported.

        The generator makes Boxes, which check whether they are empty, and computes the number of
        grid lines from floating point quotients.
        """
        generator = self.model.anchor_generator
        anchors = []
        for level, stride, cell_anchors in zip(maps, generator.strides, generator.cell_anchors):
            y, x = (
                torch.arange(size, dtype=torch.float32, device=level.device) * stride
                + generator.offset * stride
                for size in level.shape[-2:]
            )
            y, x = torch.meshgrid(y, x, indexing="ij")
            shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
            anchors.append((shifts + cell_anchors).reshape(-1, 4))  # (Ri, 4)
        return anchors


def to_precision(model: ATSS, dtype: torch.dtype) -> ATSS:
    """Returns a copy of ``model`` whose backbone and head have parameters of this dtype.

    Everything else stays in float32: normalized pixels, anchors and boxes need its precision.
    """
    model = copy.deepcopy(model)
    model.backbone.to(dtype)
    model.head.to(dtype)
    return model
