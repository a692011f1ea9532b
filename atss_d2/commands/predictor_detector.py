"""The detector of ``predict``: a model in Detectron2."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from detectron2.config import CfgNode
    from omegaconf import DictConfig

    from ..plain.detections import Detections
    from ..predictor import Predictor


class PredictorDetector:
    """Adapts a :class:`Predictor` to :class:`~atss_d2.commands.detecting.Detecting`."""

    def __init__(self, predictor: Predictor, *, more_detections: str) -> None:
        """
        Args:
            predictor: The predictor.
            more_detections: An override that raises the maximum number of detections per image.
        """
        from ..predictor import nms_with_torch

        self.predictor = predictor
        self.categories = predictor.categories
        self.max_detections = getattr(predictor.model, "max_detections_per_image", None)
        self.iou_thresh = getattr(predictor.model, "test_nms_thresh", 0.5)
        self.how_to_raise_it = f"raise it with --opts {more_detections}"
        self.nms = nms_with_torch

    def detect(self, images: list[np.ndarray]) -> list[Detections]:
        """Returns the detections in RGB images (H, W, 3) uint8."""
        from ..predictor import to_detections

        return [to_detections(x) for x in self.predictor([x[:, :, ::-1] for x in images])]


def load(args: argparse.Namespace, cfg: DictConfig | CfgNode | None = None) -> PredictorDetector:
    """Builds the detector that the flags describe; ``cfg`` is their config, if already loaded."""
    from ..config import load_config, view_of
    from ..predictor import Predictor

    device, overrides = (args.device, args.opts) if cfg is None else (None, [])
    cfg = cfg if cfg is not None else load_config(args.config_file)
    predictor = Predictor(
        cfg, args.weights, device=device, overrides=overrides, batch_size=args.batch_size
    )
    return PredictorDetector(predictor, more_detections=view_of(cfg).more_detections)
