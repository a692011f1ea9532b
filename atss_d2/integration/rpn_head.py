"""A head for an RPN whose losses are of all anchors, and the scores of its proposals.

Shapes: N images, L levels of size Hi x Wi, A anchors per location, Ri anchors of level i.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY, StandardRPNHead
from torch import Tensor, nn

from ..modeling.gflv2_head import product_logits
from ..modeling.nouns import Predictions


@RPN_HEAD_REGISTRY.register()
class ATSSRPNHead(StandardRPNHead):
    """Detectron2's RPN head with scores that start at a prior, and a 3x3 branch for a quality.

    Names of the other weights are Detectron2's.
    """

    @configurable
    def __init__(
        self, *, prior_prob: float = 0.01, with_centerness: bool = True, **kwargs: Any
    ) -> None:
        """
        Args:
            prior_prob: Initial objectness, as a focal loss over all anchors needs it.
            with_centerness: Whether a quality, centerness or IoU, is predicted.
            **kwargs: The arguments of :class:`StandardRPNHead`.

        Raises:
            ValueError: ``prior_prob`` is not between 0 and 1.
        """
        super().__init__(**kwargs)
        if not 0 < prior_prob < 1:
            raise ValueError(f"prior_prob must be between 0 and 1, got {prior_prob}")
        nn.init.constant_(self.objectness_logits.bias, -math.log((1 - prior_prob) / prior_prob))
        self.num_anchors = self.objectness_logits.out_channels
        self.predicts_quality = with_centerness
        self.ctrness = None
        if with_centerness:
            channels = self.objectness_logits.in_channels
            self.ctrness = nn.Conv2d(channels, self.num_anchors, kernel_size=3, padding=1)
            nn.init.normal_(self.ctrness.weight, std=0.01)
            nn.init.zeros_(self.ctrness.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Reads Detectron2's keys, and two of ``MODEL.ATSS.HEAD``."""
        node = cfg.MODEL.ATSS.HEAD
        return {
            **super().from_config(cfg, input_shape),
            "prior_prob": node.PRIOR_PROB,
            "with_centerness": node.WITH_CENTERNESS,
        }

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        """Predicts objectness, boxes and, optionally, a quality from all levels.

        Args:
            features: L maps (N, C, Hi, Wi).

        Returns:
            Three lists of L maps: objectness logits (N, A, Hi, Wi), deltas (N, 4 A, Hi, Wi) and
            quality logits (N, A, Hi, Wi); only the first two without ``with_centerness``.
        """
        hidden = [self.conv(x) for x in features]
        maps = [
            [predict(x) for x in hidden] for predict in (self.objectness_logits, self.anchor_deltas)
        ]
        return maps if self.ctrness is None else [*maps, [self.ctrness(x) for x in hidden]]


def proposal_logits(predictions: Predictions) -> list[Tensor]:
    """Returns the logits L x (N, Ri) of the scores of proposals.

    With a quality, the score is sqrt(objectness x quality), in at least float32.
    """
    logits = [level.squeeze(2) for level in predictions.logits]
    if predictions.quality is None:
        return logits
    return [sqrt_product_logits(x, y) for x, y in zip(logits, predictions.quality)]


def sqrt_product_logits(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Computes the logits of sqrt(sigmoid(x) sigmoid(y)) of tensors of one shape.

    With z the logit of the product s and p = sqrt(s): log p = -log(1 + exp(-z)) / 2, and
    1 - p = (1 - s) / (1 + p). Nothing underflows, so the result is finite for all finite x and y.
    """
    z = product_logits(logits, other_logits)
    log_p = -F.softplus(-z) / 2
    return log_p + F.softplus(z) + log_p.exp().log1p()
