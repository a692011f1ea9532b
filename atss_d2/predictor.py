"""Detects objects in images, with any of our configs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import build_model as build_yaml_model
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig

from .config import by_kind, load_view
from .data.categories import Categories, find_categories
from .data.images import read_image
from .data.test_loader import same_size_batches
from .engine import build_model, load_weights
from .modeling.nms import batched_nms
from .plain.coco import unnamed_categories
from .plain.detections import Detections
from .plain.tiles import TILE_OVERLAP, TILE_SIZE, Tiling

logger = logging.getLogger(__name__)

Image = str | Path | np.ndarray

_IMAGE_RULE = "an image must be a file name or an (H, W, 3) uint8 array in BGR order"


class Predictor:
    """Detectron2's ``DefaultPredictor`` for LazyConfigs as well, and for batches.

    Example::

        predictor = Predictor("coco/atss_R_50_FPN_1x", "output/model_final.pth")
        instances = predictor("street.jpg")
        instances.pred_boxes, instances.scores, instances.pred_classes

    Attributes:
        model: The detector, in evaluation mode.
        has_names: Whether the class names are known. They are looked up in the checkpoint, then in
            the config, then in the metadata or the JSON file of its test and training data sets.
        categories: ``{"id": ..., "name": ...}`` of the K classes, in the order of
            ``pred_classes``: the ids and names of the data set that the model was trained on.
            If the names are unknown, the class numbers.
        metadata: Detectron2's metadata of the config's test data set, with these names and ids.
    """

    def __init__(
        self,
        config: str | Path | DictConfig | CfgNode,
        weights: str | Path | None = None,
        *,
        device: str | None = None,
        overrides: Sequence[str] = (),
        batch_size: int = 1,
    ) -> None:
        """
        Args:
            config: A name such as ``"coco/atss_R_50_FPN_1x"``, a config file (lazy or yaml, or the
                ``config.yaml`` of an output folder), or a config. It is not changed.
            weights: A checkpoint. Default: the one that the config names.
            device: For example ``"cpu"``. Default: the config's, or the CPU without a GPU.
            overrides: ``key=value`` for a LazyConfig; ``KEY``, ``value`` in turn for yaml.
            batch_size: Maximum number of images per batch, if a list of images is given.

        Raises:
            FileNotFoundError: There is no such config or checkpoint.
            CheckpointError: The checkpoint is refused, damaged, or from another model.
            ValueError: Neither ``weights`` nor the config names a checkpoint.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        view = load_view(config, overrides, device=device)
        self.model = by_kind(view.cfg, lazy=build_model, yaml=build_yaml_model)(view.cfg)
        weights = str(weights) if weights is not None else view.weights
        if not weights:
            raise ValueError("no weights: give a checkpoint, the config does not name one")
        self._augmentations = T.AugmentationList(view.test_augmentations)
        self._input_format = view.input_format
        self._datasets = view.dataset_names("test", "train")
        checkpoint = load_weights(self.model, weights)
        self.model.eval()
        self.batch_size = batch_size
        categories = find_categories(
            checkpoint,
            lambda: view.categories,
            self._datasets,
            getattr(self.model, "num_classes", None),
        )
        self.has_names = bool(categories)
        self.categories: Categories = categories or unnamed_categories(
            getattr(self.model, "num_classes", 0)
        )
        self.metadata = self._metadata()

    def _metadata(self) -> Metadata:
        """Returns a copy, since Detectron2's own metadata must not change once set."""
        name = next(iter(self._datasets), None)
        known = MetadataCatalog.get(name).as_dict() if name in MetadataCatalog.list() else {}
        if self.has_names:
            ids = [category["id"] for category in self.categories]
            known["thing_classes"] = self.class_names
            known["thing_dataset_id_to_contiguous_id"] = {x: i for i, x in enumerate(ids)}
        return Metadata(**known)

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes; their numbers if the names are unknown."""
        return [category["name"] for category in self.categories]

    @torch.no_grad()  # not inference_mode, whose boxes could not be changed in place
    def __call__(self, images: Image | Sequence[Image]) -> Instances | list[Instances]:
        """Detects objects.

        Args:
            images: A file name or an (H, W, 3) uint8 array in BGR order, or a list of these.

        Returns:
            Instances on the CPU with ``pred_boxes`` in pixels of the given image, ``scores`` and
            ``pred_classes``; a list of them for a list. The detections of an image do not depend
            on the other images.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: An image is neither a file name nor an array as above.
        """
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        results: list[Instances | None] = [None] * len(images)
        inputs = ({**self.prepare(image), "index": i} for i, image in enumerate(images))
        for batch in same_size_batches(inputs, self.batch_size):
            for x, instances in zip(batch, self.detect_prepared(batch)):
                results[x["index"]] = instances
        return results

    @torch.no_grad()
    def detect_prepared(self, batch: list[dict]) -> list[Instances]:
        """Detects objects in inputs that :meth:`prepare` made, in a single batch.

        Args:
            batch: Inputs whose ``image`` has the same shape, or their detections depend on each
                other.
        """
        return [output["instances"].to("cpu") for output in self.model(batch)]

    def detect_tiles(
        self,
        image: Image,
        *,
        tile_size: int = TILE_SIZE,
        tile_overlap: float = TILE_OVERLAP,
        score_thresh: float = 0.0,
    ) -> Instances:
        """Detects objects in overlapping tiles of a large photograph.

        A single pass gives at most ``max_detections_per_image`` detections and may shrink the
        photograph until small objects vanish. Here this applies to each tile instead.
        :meth:`~atss_d2.plain.tiles.Tiling.merge` describes how boxes at tile borders and objects
        larger than the overlap are treated. All tiles have the same size and run in batches.

        Args:
            image: A file name or an (H, W, 3) uint8 array in BGR order.
            tile_size: Side of a tile, in pixels of the photograph.
            tile_overlap: Minimum fraction of ``tile_size`` that neighboring tiles share.
            score_thresh: Detections below this score are left out.

        Returns:
            Instances as returned by a call, but without a limit on their number.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: ``image`` is neither a file name nor an array as above, or a tile is smaller
                than 32 pixels or shares more than nine tenths with its neighbors.
        """
        image = self._read(image)
        height, width = image.shape[:2]
        tiling = Tiling(width, height, size=tile_size, overlap=tile_overlap)
        most = getattr(self.model, "max_detections_per_image", None)
        merged, num_full = tiling.detect(
            image,
            lambda images: [to_detections(x) for x in self(images)],
            iou_thresh=self.model.test_nms_thresh,
            score_thresh=score_thresh,
            max_detections=most,
            nms=nms_with_torch,
        )
        if num_full:
            logger.warning(
                f"{num_full} tiles have {most} detections, the most that a pass gives "
                "(max_detections_per_image): more objects may be there; use smaller tiles"
            )
        return Instances(
            (height, width),
            pred_boxes=Boxes(torch.from_numpy(merged.boxes)),
            scores=torch.from_numpy(merged.scores),
            pred_classes=torch.from_numpy(merged.classes),
        )

    @property
    def augmentations(self) -> list[T.Augmentation]:
        """The config's augmentations of test images, usually a resize."""
        return list(self._augmentations.augs)

    def prepare(self, image: Image) -> dict:
        """Makes one input of the model, as the config's test mapper does.

        Args:
            image: A file name or an (H, W, 3) uint8 array in BGR order.

        Raises:
            ValueError: ``image`` is neither.
        """
        image = self._read(image)
        height, width = image.shape[:2]
        if self._input_format == "RGB":
            image = image[:, :, ::-1]
        aug_input = T.AugInput(image)
        self._augmentations(aug_input)
        pixels = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        return {"image": torch.from_numpy(pixels), "height": height, "width": width}

    @staticmethod
    def _read(image: Image) -> np.ndarray:
        if isinstance(image, (str, Path)):
            image = read_image(image, "BGR")
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"{_IMAGE_RULE}, got {kind}")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"{_IMAGE_RULE}, got shape {image.shape}")
        return image


def to_detections(instances: Instances) -> Detections:
    """Converts instances on the CPU to plain arrays."""
    return Detections(
        instances.pred_boxes.tensor.numpy(),
        instances.scores.numpy(),
        instances.pred_classes.numpy(),
    )


def nms_with_torch(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, iou_thresh: float
) -> np.ndarray:
    """Applies :func:`~atss_d2.modeling.nms.batched_nms` to arrays."""
    arrays = (torch.from_numpy(x) for x in (boxes, scores, classes))
    return batched_nms(*arrays, iou_thresh).numpy()
