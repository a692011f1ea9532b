"""VFNet's head: a star of nine points on a first box, at which both branches look again.

Shapes: N images, L levels of size Hi x Wi, C channels, K classes. Distances (N, 4, Hi, Wi) are
those to left, top, right and bottom, in strides, as :class:`PointDistances` takes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

from .deform_conv import DeformConv2d
from .head import HEAD_REGISTRY, ATSSHead, Scale
from .precision import widen


@HEAD_REGISTRY.register()
class VFNetHead(ATSSHead):
    """Predicts a first box, refines it, and scores the refined one (arXiv 2008.13367, Sec. 3.3).

    After its tower, each branch has a deformable convolution (v1) whose nine samples lie on the
    first box: its location, the places beside it on the four sides, and the corners. The refined
    distances are the first ones times predicted factors. There is one anchor per location; the box
    coder must be :class:`PointDistances`.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int = 1,
        num_box_values: int = 4,
        conv_dims: Sequence[int] = (256, 256, 256),
        norm: str = "GN",
        conv_bias: bool = False,
        deform_last_conv: bool = False,
        prior_prob: float = 0.01,
        unit_distance: float = 8.0,
        star_gradient: float = 0.1,
    ) -> None:
        """
        Args:
            input_shape: See :class:`ATSSHead`, as for the rest.
            num_classes: See there.
            num_anchors: Must be 1.
            num_box_values: Must be 4.
            conv_dims: Channels of each convolution of a tower; the branch of the first box has one
                more like the last.
            norm: See there.
            conv_bias: See there.
            deform_last_conv: See there; the layer of the first box stays as it is.
            prior_prob: See there.
            unit_distance: First distance that is predicted as 0 = log(1), in strides.
            star_gradient: Factor of the gradient that reaches the first box through the places of
                the samples.

        Raises:
            ValueError: An argument is out of range.
        """
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            conv_dims=conv_dims,
            norm=norm,
            conv_bias=conv_bias,
            deform_last_conv=deform_last_conv,
            prior_prob=prior_prob,
            with_centerness=False,
        )
        if num_anchors != 1 or num_box_values != 4:
            raise ValueError(
                "VFNetHead predicts the four distances of PointDistances, from one anchor per "
                f"location: got num_anchors={num_anchors} and num_box_values={num_box_values}"
            )
        if unit_distance <= 0:
            raise ValueError(f"unit_distance must be > 0, got {unit_distance}")
        self.unit_distance = unit_distance
        self.star_gradient = star_gradient
        channels = self.cls_score.in_channels
        first_subnet = [nn.Conv2d(channels, channels, 3, padding=1, bias=conv_bias)]
        if norm:
            first_subnet.append(get_norm(norm, channels))
        self.first_subnet = nn.Sequential(*first_subnet, nn.ReLU())
        self.cls_star = DeformConv2d(channels, channels, 3, padding=1)
        self.bbox_star = DeformConv2d(channels, channels, 3, padding=1)
        self.refined_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.refined_scales = nn.ModuleList([Scale() for _ in input_shape])
        self._init_weights(prior_prob, bbox_pred_bias=0.0)

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        """Predicts classes and refined boxes from all levels; in training also the first boxes.

        Args:
            features: L maps, each (N, C, Hi, Wi), from high to low resolution.

        Returns:
            Lists of L maps: class logits (N, K, Hi, Wi) and refined distances (N, 4, Hi, Wi); in
            training, also an empty list (there is no quality) and the first distances. Distances
            are in float32, even of features in half precision.
        """
        if len(features) != len(self.scales):
            raise ValueError(
                f"the head was built for {len(self.scales)} levels, got {len(features)}"
            )
        logits, refined, first = [], [], []
        # torch.jit.script unrolls lists of modules, which it cannot zip with a list of tensors.
        for level, (scale, refined_scale) in enumerate(zip(self.scales, self.refined_scales)):
            feature = features[level]
            box_feature = self.bbox_subnet(feature)
            prediction = widen(self.bbox_pred(self.first_subnet(box_feature)))
            distances = self.unit_distance * _bounded_exp(scale(prediction))
            first.append(distances)
            # The same values, with a part of the gradient.
            offsets = star_offsets(torch.lerp(distances.detach(), distances, self.star_gradient))
            box_feature = F.relu(self.bbox_star(box_feature, offsets))
            factors = _bounded_exp(refined_scale(widen(self.refined_pred(box_feature))))
            refined.append(distances.detach() * factors)
            cls_feature = F.relu(self.cls_star(self.cls_subnet(feature), offsets))
            logits.append(self.cls_score(cls_feature))
        if self.training:
            return [logits, refined, [], first]
        return [logits, refined]


def star_offsets(distances: Tensor) -> Tensor:
    """Returns the offsets that move a 3x3 kernel's nine samples onto boxes.

    Args:
        distances: (N, 4, H, W), in strides: cells of the map.

    Returns:
        (N, 18, H, W): (dy, dx) of the nine points of the kernel, row by row.
    """
    left, top, right, bottom = distances.unbind(dim=1)  # (N, H, W)
    zero = torch.zeros_like(left)
    # Differences to the kernel's own places, -1, 0 and 1.
    y = torch.stack((1 - top, zero, bottom - 1), dim=1)  # (N, 3, H, W)
    x = torch.stack((1 - left, zero, right - 1), dim=1)
    y, x = y.repeat_interleave(3, dim=1), x.repeat(1, 3, 1, 1)  # (N, 9, H, W)
    return torch.stack((y, x), dim=2).flatten(1, 2)


def _bounded_exp(x: Tensor, max_x: float = math.log(1000 / 16)) -> Tensor:
    """Returns exp(x), at most 62.5, as Detectron2's box coder bounds its factors."""
    return x.clamp(max=max_x).exp()
