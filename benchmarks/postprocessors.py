"""Post-processing of several libraries on the same predictions, each in its own encoding.

Shapes: L levels of Ri anchors, K classes, D detections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet

from . import scenes
from .models import ATSS, FCOS, RETINANET, build
from .scenes import Predictions

TV_FCOS, TV_RETINANET = "torchvision FCOS", "torchvision RetinaNet"
WITHOUT_CENTERNESS = "ATSS without centerness"
_NMS_THRESH, _MAX_DETECTIONS = 0.6, 100


@dataclass(frozen=True)
class Postprocessor:
    """Post-processing of a batch.

    Args:
        name: Its name in tables.
        model: The model that it belongs to.
        run: The timed call; begins with the maps that convolutions return.
        prepare: Called before each ``run``, not timed: some overwrite their inputs.
        read: Converts the result to boxes (D, 4), scores (D,) and classes (D,) of the last image.
    """

    name: str
    model: nn.Module
    run: Callable[[], object]
    prepare: Callable[[], None]
    read: Callable[[object], tuple[Tensor, Tensor, Tensor]]


def maps_for(
    model: nn.Module,
    found: Predictions,
    image_size: tuple[int, int],
    *,
    with_centerness: bool,
    num_images: int = 1,
) -> list[list[Tensor]]:
    """Encodes predictions as a model's maps (N, C, Hi, Wi) of logits, deltas and centerness."""
    anchors = model.anchor_generator(scenes.feature_maps(image_size, device=model.device))
    deltas = [
        model.box2box_transform.get_deltas(level.tensor, boxes.to(model.device))
        for level, boxes in zip(anchors, found.boxes)
    ]
    parts = [found.logits, deltas]
    if with_centerness:
        parts.append([x[:, None] for x in found.centerness])
    return [scenes.as_maps(part, image_size, num_images) for part in parts]


def detectron2_style(
    name: str,
    model: nn.Module,
    found: Predictions,
    image_size: tuple[int, int],
    num_images: int,
    *,
    with_centerness: bool,
) -> Postprocessor:
    """Returns ``forward_inference`` of our model or one of Detectron2's."""
    features = scenes.feature_maps(image_size, num_images, found.logits[0].device)
    images = ImageList(features[0], [image_size] * num_images)
    originals = maps_for(
        model, found, image_size, with_centerness=with_centerness, num_images=num_images
    )
    maps: list[list[Tensor]] = []

    def prepare() -> None:
        maps[:] = [[level.clone() for level in part] for part in originals]

    def read(results: list[Instances]) -> tuple[Tensor, Tensor, Tensor]:
        boxes = results[-1].pred_boxes
        boxes.clip(image_size)  # Detectron2 clips later, ours has clipped before NMS
        return boxes.tensor, results[-1].scores, results[-1].pred_classes

    return Postprocessor(
        name, model, lambda: model.forward_inference(images, features, maps), prepare, read
    )


class _Pyramid(nn.Module):
    """The part of a backbone that torchvision's detectors check."""

    out_channels = 32


def torchvision_style(
    name: str,
    found: Predictions,
    image_size: tuple[int, int],
    num_images: int,
    num_classes: int,
) -> Postprocessor:
    """Returns ``postprocess_detections`` of a torchvision model.

    torchvision's heads return predictions in the order that it needs; here reordering them is part
    of the timed call, as it is for the others.
    """
    if name == TV_FCOS:
        model = TorchvisionFCOS(_Pyramid(), num_classes)
        anchors = [a.tensor for a in scenes.anchors(image_size, scenes.POINT_SCALE)]
        encode = model.box_coder.encode
    else:
        model = TorchvisionRetinaNet(
            _Pyramid(), num_classes, nms_thresh=_NMS_THRESH, detections_per_img=_MAX_DETECTIONS
        )
        anchors = [a.tensor for a in scenes.anchors(image_size)]

        def encode(anchors: Tensor, boxes: Tensor) -> Tensor:
            return model.box_coder.encode_single(boxes, anchors)

    deltas = [encode(level, boxes) for level, boxes in zip(anchors, found.boxes)]
    parts = {"cls_logits": found.logits, "bbox_regression": deltas}
    if name == TV_FCOS:
        parts["bbox_ctrness"] = [x[:, None] for x in found.centerness]
    channels = {key: part[0].shape[1] for key, part in parts.items()}
    maps = {key: scenes.as_maps(part, image_size, num_images) for key, part in parts.items()}

    def run() -> list[dict[str, Tensor]]:
        outputs = {
            key: [permute_to_N_HWA_K(x, channels[key]) for x in levels]
            for key, levels in maps.items()
        }
        return model.postprocess_detections(
            outputs, [anchors] * num_images, [image_size] * num_images
        )

    def read(results: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        return results[-1]["boxes"], results[-1]["scores"], results[-1]["labels"]

    return Postprocessor(name, model, run, lambda: None, read)


def groups(
    found: Predictions, image_size: tuple[int, int], num_classes: int, num_images: int = 1
) -> dict[str, list[Postprocessor]]:
    """Returns the groups with and without centerness, ours first; all images of a batch are equal.

    Without centerness all compute the same. With centerness they differ: FCOS compares the square
    root of class score x centerness with its threshold, 0.2, ours the class score with 0.05.
    """
    common = {"num_classes": num_classes}
    scene = (found, image_size, num_images)
    centerness = [
        detectron2_style(name, build(name, **common), *scene, with_centerness=True)
        for name in (ATSS, FCOS)
    ]
    retinanet = build(RETINANET, num_anchors=1, **common)
    retinanet.test_nms_thresh = _NMS_THRESH
    plain = [
        detectron2_style(name, model, *scene, with_centerness=False)
        for name, model in (
            (WITHOUT_CENTERNESS, build(ATSS, with_centerness=False, **common)),
            (RETINANET, retinanet),
        )
    ]
    return {
        "centerness": [*centerness, torchvision_style(TV_FCOS, *scene, num_classes)],
        "no centerness": [
            *plain,
            torchvision_style(TV_RETINANET, *scene, num_classes),
        ],
    }


def detections(postprocessor: Postprocessor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns boxes (D, 4), scores (D,) and classes (D,)."""
    postprocessor.prepare()
    with torch.no_grad():
        return postprocessor.read(postprocessor.run())


def check_equal(group: list[Postprocessor]) -> int:
    """Returns the number of detections; AssertionError if those of a group are not the same."""
    boxes, scores, classes = detections(group[0])
    for other in group[1:]:
        their_boxes, their_scores, their_classes = detections(other)
        # Scores that are equal up to rounding may swap places.
        place = (scores[:, None] - their_scores).abs() < 1e-5
        is_same = place & (classes[:, None] == their_classes)
        is_same &= ((boxes[:, None] - their_boxes).abs() < 0.01).all(dim=2)
        if len(scores) != len(their_scores) or not is_same.any(dim=1).all():
            raise AssertionError(f"{other.name} finds other objects than {group[0].name}")
    return len(scores)
