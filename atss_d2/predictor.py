"""Detections for images, from any of our configs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model as build_yaml_model
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf

from .config import load_config
from .data.test_loader import same_size_batches
from .engine import (
    apply_overrides,
    apply_yaml_overrides,
    build_model,
    load_weights,
    resolve_device,
)

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
        metadata: Detectron2's metadata of the config's test data set.
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
            config: A name such as ``"coco/atss_R_50_FPN_1x"``, a config file (lazy or yaml, also
                the ``config.yaml`` of an output folder), or a config. It is not changed.
            weights: A checkpoint. Default: the one that the config names.
            device: For example ``"cpu"``. Default: the config's, or the CPU without a GPU.
            overrides: ``key=value`` for a LazyConfig; ``KEY``, ``value`` in turn for yaml.
            batch_size: Most images that are run at once, when a list of images is given.

        Raises:
            FileNotFoundError: There is no such config or checkpoint.
            CheckpointError: The checkpoint is refused, damaged, or of another model.
            ValueError: Neither ``weights`` nor the config names a checkpoint.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        cfg = load_config(config)
        build = self._build_from_yaml if isinstance(cfg, CfgNode) else self._build_from_lazy
        configured_weights = build(cfg, device, overrides)
        weights = str(weights) if weights is not None else configured_weights
        if not weights:
            raise ValueError("no weights: give a checkpoint, the config does not name one")
        load_weights(self.model, weights)
        self.model.eval()
        self.batch_size = batch_size

    def _build_from_lazy(
        self, cfg: DictConfig, device: str | None, overrides: Sequence[str]
    ) -> str:
        cfg = apply_overrides(copy.deepcopy(cfg), overrides)
        if device is not None:
            cfg.train.device = device
        self.model = build_model(cfg)
        # A data set that is not in Detectron2's catalog has no names.
        self.metadata: Metadata = _metadata(
            OmegaConf.select(cfg, "dataloader.test.dataset.names", default=[])
        )
        self._augmentations = T.AugmentationList(
            list(instantiate(cfg.dataloader.test.mapper.augmentations))
        )
        self._input_format = cfg.dataloader.test.mapper.image_format
        return cfg.train.init_checkpoint

    def _build_from_yaml(self, cfg: CfgNode, device: str | None, overrides: Sequence[str]) -> str:
        cfg = cfg.clone()
        cfg.defrost()
        apply_yaml_overrides(cfg, overrides)
        cfg.MODEL.DEVICE = resolve_device(device or cfg.MODEL.DEVICE)
        self.model = build_yaml_model(cfg)
        self.metadata = _metadata(cfg.DATASETS.TEST)
        self._augmentations = T.AugmentationList(
            [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)]
        )
        self._input_format = cfg.INPUT.FORMAT
        return cfg.MODEL.WEIGHTS

    @property
    def class_names(self) -> list[str]:
        """Names of the K classes; their numbers where the data set has no names."""
        names = self.metadata.get("thing_classes")
        return list(names) if names else [str(i) for i in range(self.model.num_classes)]

    @torch.no_grad()  # not inference_mode, whose boxes could not be changed in place
    def __call__(self, images: Image | Sequence[Image]) -> Instances | list[Instances]:
        """Detects objects.

        Args:
            images: A file name or an (H, W, 3) uint8 array in BGR order, or a list of these.

        Returns:
            Instances on the CPU with ``pred_boxes`` in pixels of the given image, ``scores`` and
            ``pred_classes``; a list of them for a list. The detections of an image do not depend
            on the images that are given with it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: Something is neither a file name nor an array as above.
        """
        if not isinstance(images, (list, tuple)):
            return self([images])[0]
        results: list[Instances | None] = [None] * len(images)
        inputs = ({**self.prepare(image), "index": i} for i, image in enumerate(images))
        for batch in same_size_batches(inputs, self.batch_size):
            for x, output in zip(batch, self.model(batch)):
                results[x["index"]] = output["instances"].to("cpu")
        return results

    @property
    def augmentations(self) -> list[T.Augmentation]:
        """What the config does to test images, resizing as a rule."""
        return list(self._augmentations.augs)

    def prepare(self, image: Image) -> dict:
        """One input of the model, as the config's test mapper makes it.

        Args:
            image: A file name or an (H, W, 3) uint8 array in BGR order.

        Raises:
            ValueError: It is neither.
        """
        if isinstance(image, (str, Path)):
            image = read_image(str(image), format="BGR")
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
            kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
            raise ValueError(f"{_IMAGE_RULE}, got {kind}")
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"{_IMAGE_RULE}, got shape {image.shape}")
        height, width = image.shape[:2]
        if self._input_format == "RGB":
            image = image[:, :, ::-1]
        aug_input = T.AugInput(image)
        self._augmentations(aug_input)
        pixels = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        return {"image": torch.from_numpy(pixels), "height": height, "width": width}


def _metadata(names: str | Sequence[str]) -> Metadata:
    names = [names] if isinstance(names, str) else list(names)
    return MetadataCatalog.get(names[0]) if names else Metadata()
