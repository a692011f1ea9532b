"""GFLv2's head: the shape of the distributions of a box says how good the box is.

Shapes: N images, L levels of size Hi x Wi, K classes, B bins of a side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head import HEAD_REGISTRY, ATSSHead
from .precision import widen


@HEAD_REGISTRY.register()
class GFLv2Head(ATSSHead):
    """A head whose class score is multiplied by a quality (arXiv 2011.12885, Eq. 2).

    The quality is computed from the ``topk`` highest probabilities of each side's distribution and
    their mean, by two 1x1 convolutions. The head returns the logits of the product, so losses,
    post-processing and exports are those of GFL. There is one anchor per location, and the box
    coder is :class:`DistanceDistributions`.
    """

    def __init__(
        self, *, num_box_values: int = 68, topk: int = 4, quality_channels: int = 64, **kwargs
    ) -> None:
        """
        Args:
            num_box_values: 4 B, logits of the four distributions.
            topk: Probabilities of a side that are used.
            quality_channels: Channels between the two convolutions.
            kwargs: See :class:`ATSSHead`; there is no centerness.

        Raises:
            ValueError: ``num_box_values`` is not 4 B with B >= ``topk``, or there are several
                anchors per location.
        """
        super().__init__(num_box_values=num_box_values, **{**kwargs, "with_centerness": False})
        if num_box_values % 4 or not 1 <= topk <= num_box_values // 4:
            raise ValueError(
                f"num_box_values must be 4 times the bins of a side, at least topk={topk} bins, "
                f"got {num_box_values}: set box2box_transform to DistanceDistributions "
                "(MODEL.ATSS.BOX_CODER in yaml)"
            )
        if self.num_anchors != 1:
            raise ValueError(f"GFLv2Head has num_anchors=1, got {self.num_anchors}")
        self.topk = topk
        self.quality = nn.Sequential(
            nn.Conv2d(4 * (topk + 1), quality_channels, kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(quality_channels, 1, kernel_size=1),
        )
        for conv in (self.quality[0], self.quality[2]):
            nn.init.normal_(conv.weight, mean=0, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        """Predicts classes and boxes from all levels, see :meth:`ATSSHead.forward`.

        Returns:
            Two lists of L maps: logits (N, K, Hi, Wi) of class score x quality, and logits of
            distributions (N, 4 B, Hi, Wi).
        """
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        # torch.jit.script unrolls a list of modules, which it cannot zip with a list of tensors.
        for level, scale in enumerate(self.scales):
            feature = features[level]
            box = scale(self.bbox_pred(self.bbox_subnet(feature)))
            class_logits = self.cls_score(self.cls_subnet(feature))
            logits.append(product_logits(class_logits, self.quality_logits(box)))
            boxes.append(box)
        return [logits, boxes]

    def quality_logits(self, box: Tensor) -> Tensor:
        """Computes quality logits (N, 1, H, W) from logits of distributions (N, 4 B, H, W)."""
        num_images, _, height, width = box.shape
        p = widen(box).reshape(num_images, 4, -1, height, width).softmax(dim=2)
        top = p.topk(self.topk, dim=2).values  # (N, 4, topk, H, W)
        statistics = torch.cat((top, top.mean(dim=2, keepdim=True)), dim=2)
        return self.quality(statistics.flatten(1, 2).to(box.dtype))


def product_logits(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Computes the logits of sigmoid(x) sigmoid(y), which broadcast, in at least float32.

    It is x - log(1 + exp(log(1 + exp(x)) - y)): no product that could underflow, no logarithm of
    0, and a finite gradient for any x and y.
    """
    x, y = widen(logits), widen(other_logits)
    return x - F.softplus(F.softplus(x) - y)
