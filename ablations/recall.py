"""Average recall of the proposals of an R-CNN, by their number and the size of the objects.

Shapes: N images, P proposals of an image, G objects of a size, L = 3 numbers of proposals.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_context
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig
from pycocotools.coco import COCO
from torch import Tensor, nn

from atss_d2.engine.models import build_model, load_weights

LIMITS = (100, 300, 1000)
# COCO's sizes, by area in square pixels.
SIZES = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
THRESHOLDS = np.arange(0.5, 0.96, 0.05)

# Name of a size -> images (G,) of its objects, and (L, G) the IoU of the proposal of each.
Coverage = dict[str, tuple[np.ndarray, np.ndarray]]


def measure(cfg: DictConfig, weights: str) -> Coverage:
    """Measures how well the proposals of an R-CNN cover the objects of its test set.

    Args:
        cfg: A LazyConfig.
        weights: A checkpoint.

    Raises:
        ValueError: It is another config, the model has no proposal generator, or the checkpoint
            does not fit.
    """
    if not isinstance(cfg, DictConfig) or not isinstance(cfg.dataloader.test.dataset.names, str):
        raise ValueError("recall is measured for a LazyConfig with one test set in COCO's format")
    model = build_model(cfg)
    if getattr(model, "proposal_generator", None) is None:
        raise ValueError(f"{type(model).__name__} has no proposal_generator: give an R-CNN")
    load_weights(model, weights)
    # Some detectors use fewer proposals than are asked for here.
    topk = getattr(model.proposal_generator, "post_nms_topk", {})
    if topk:
        topk[False] = max(topk[False], *LIMITS)
    instantiate(cfg.dataloader.test.dataset)  # generated scenes are drawn if need be
    path = PathManager.get_local_path(
        MetadataCatalog.get(cfg.dataloader.test.dataset.names).json_file
    )
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO(path)
    order = {image: i for i, image in enumerate(sorted(annotations.getImgIds()))}
    found: dict[str, list] = {size: [] for size in SIZES}
    with inference_context(model), torch.no_grad():
        for inputs in instantiate(cfg.dataloader.test):
            for x, proposals in zip(inputs, propose(model, inputs), strict=True):
                objects = annotations.loadAnns(annotations.getAnnIds(imgIds=x["image_id"]))
                for size, overlaps in cover(proposals, objects).items():
                    images = np.full(overlaps.shape[1], order[x["image_id"]])
                    found[size].append((images, overlaps))
    return {
        size: (np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts], 1))
        for size, parts in found.items()
    }


def propose(model: nn.Module, inputs: list[dict]) -> list[Instances]:
    """Returns the proposals of each image, best first, in pixels of the original image."""
    images = model.preprocess_image(inputs)
    proposals, _ = model.proposal_generator(images, model.backbone(images.tensor))
    return [
        detector_postprocess(found, x.get("height", size[0]), x.get("width", size[1]))
        for x, found, size in zip(inputs, proposals, images.image_sizes, strict=True)
    ]


def cover(proposals: Instances, objects: Sequence[dict]) -> dict[str, np.ndarray]:
    """Returns for each size the IoUs (L, G) of the objects with their proposals.

    Args:
        proposals: Proposals of an image, best first.
        objects: Annotations of the image; crowds do not count.
    """
    objects = [x for x in objects if not x.get("iscrowd")]
    boxes = torch.tensor([x["bbox"] for x in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    areas = torch.tensor([x["area"] for x in objects])
    overlaps = pairwise_iou(proposals.proposal_boxes.to("cpu"), Boxes(boxes))  # (P, G)
    result = {}
    for size, (low, high) in SIZES.items():
        is_size = (areas >= low) & (areas <= high)  # both ends, as in Detectron2
        of_size = [best_pairs(overlaps[:limit, is_size]) for limit in LIMITS]
        result[size] = torch.stack(of_size).numpy()
    return result


def best_pairs(overlaps: Tensor) -> Tensor:
    """Pairs proposals and objects, best IoU first, each at most once.

    Args:
        overlaps: (P, G) IoUs.

    Returns:
        (G,) IoU of the proposal that each object gets; 0 for none.
    """
    overlaps = overlaps.clone()
    best = overlaps.new_zeros(overlaps.shape[1])
    for _ in range(min(overlaps.shape)):
        index = int(overlaps.argmax())
        proposal, box = divmod(index, overlaps.shape[1])
        best[box] = overlaps[proposal, box]
        overlaps[proposal] = -1
        overlaps[:, box] = -1
    return best


def average_recall(
    coverage: Coverage, size: str, limit: int, weights: np.ndarray | None = None
) -> float:
    """Computes Detectron2's average recall of proposals, over IoU 0.5 to 0.95, in percent.

    COCO's differs a little: it pairs in the order of the scores.

    Args:
        coverage: See :func:`measure`.
        size: One of :data:`SIZES`.
        limit: One of :data:`LIMITS`.
        weights: (N,) how often each image was drawn; default: once.

    Returns:
        NaN without objects of the size.
    """
    images, overlaps = coverage[size]
    counts = np.ones(len(images)) if weights is None else weights[images]  # (G,)
    if not counts.sum():
        return float("nan")
    # The thresholds are not exact numbers; an IoU of 0.75 reaches 0.75.
    share = (overlaps[LIMITS.index(limit)] >= THRESHOLDS[:, None] - 1e-6).mean(axis=0)
    return float(100 * (share * counts).sum() / counts.sum())
