"""TOOD's task-aligned head (arXiv 2108.07755, Sec. 3.2).

Shapes: N images, L levels of size H x W, C channels, S shared convolutions, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

from .box_coding import PointDistances
from .head import HEAD_REGISTRY, Scale
from .precision import widen


class TaskDecomposition(nn.Module):
    """Weighs the outputs of the shared convolutions for one task, and mixes them (Eq. 3 to 5)."""

    def __init__(self, num_layers: int, channels: int, norm: str) -> None:
        """
        Args:
            num_layers: S.
            channels: C.
            norm: See :class:`TOODHead`.
        """
        super().__init__()
        self.num_layers = num_layers
        hidden = max(channels // 8, 1)
        self.layer_attention = nn.Sequential(
            nn.Conv2d(num_layers * channels, hidden, kernel_size=1),
            nn.ReLU(),
            nn.Conv2d(hidden, num_layers, kernel_size=1),
            nn.Sigmoid(),
        )
        self.reduction = nn.Conv2d(num_layers * channels, channels, kernel_size=1, bias=False)
        self.norm = get_norm(norm, channels) if norm else nn.Identity()

    def forward(self, features: Tensor, pooled: Tensor) -> Tensor:
        """Returns the features of the task.

        Args:
            features: (N, S C, H, W), outputs of the shared convolutions.
            pooled: (N, S C, 1, 1), their means.

        Returns:
            (N, C, H, W).
        """
        num_images, _, height, width = features.shape
        attention = self.layer_attention(pooled).view(num_images, 1, self.num_layers, 1)
        # The kernel is weighted instead of the features, which are much larger.
        kernel = self.reduction.weight.view(1, self.reduction.out_channels, self.num_layers, -1)
        kernel = (kernel * attention).flatten(2)  # (N, C, S C)
        mixed = torch.bmm(kernel, features.flatten(2)).view(num_images, -1, height, width)
        return self.norm(mixed).relu()


@HEAD_REGISTRY.register()
class TOODHead(nn.Module):
    """Predicts classes and boxes from shared features, and aligns both predictions.

    A score is the geometric mean of a class score and an alignment score, which all classes of a
    location share. Each side of a box is that of the box at a learned offset; if the box is then
    inside out, it stays as it was.

    The outputs are the logits of these scores, and the distances of the sides from the center of
    the anchor in strides. After sampling, distances may be negative: the box coder must be
    ``PointDistances(clamp=False)``.
    """

    predicts_quality = False
    predicts_first_boxes = False

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int = 1,
        num_box_values: int = 4,
        conv_dims: Sequence[int] = (256,) * 6,
        norm: str = "GN",
        prior_prob: float = 0.01,
        anchor_offset: float = 0.5,
    ) -> None:
        """
        Args:
            input_shape: Shape of each of the L levels; all have the same number of channels.
            num_classes: K, foreground classes.
            num_anchors: Anchors per location, which must be 1.
            num_box_values: Values of a box, which must be 4.
            conv_dims: C of each of the S shared convolutions, which must all be equal.
            norm: Norm after each shared convolution and each decomposition, see
                :func:`detectron2.layers.get_norm`; ``""`` for none.
            prior_prob: Initial score of every class.
            anchor_offset: The ``offset`` of the anchor generator: position of the first anchor's
                center, in strides. Sides that are sampled outside the map lie at 0.

        Raises:
            ValueError: An argument is out of range, or the levels or ``conv_dims`` differ in
                channels.
        """
        super().__init__()
        for name, value, only in (
            ("num_anchors", num_anchors, 1),
            ("num_box_values", num_box_values, 4),
        ):
            if value != only:
                raise ValueError(f"TOODHead needs {name}={only}, got {value}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be >= 1, got {num_classes}")
        if not 0 < prior_prob < 1:
            raise ValueError(f"prior_prob must be between 0 and 1, got {prior_prob}")
        if len(set(conv_dims)) != 1:
            raise ValueError(
                f"conv_dims must be one or more equal numbers, which are mixed layer by layer, "
                f"got {list(conv_dims)}"
            )
        if len({shape.channels for shape in input_shape}) != 1:
            raise ValueError(
                "the head is shared by all levels, which must have the same number of channels, "
                f"got {[shape.channels for shape in input_shape]}"
            )
        self.num_classes = num_classes
        self.num_anchors = num_anchors
        self.num_box_values = num_box_values
        self.anchor_offset = anchor_offset
        # Of a distance in strides: 22026 strides reach beyond every image.
        self.max_log_distance = 10.0

        self.in_channels = input_shape[0].channels
        channels, num_layers = conv_dims[0], len(conv_dims)
        self.shared_convs = nn.ModuleList()
        for i in range(num_layers):
            conv = _conv3x3(channels if i else self.in_channels, channels, bias=not norm)
            layer = [conv, get_norm(norm, channels)] if norm else [conv]
            self.shared_convs.append(nn.Sequential(*layer, nn.ReLU()))
        self.cls_decomposition = TaskDecomposition(num_layers, channels, norm)
        self.bbox_decomposition = TaskDecomposition(num_layers, channels, norm)
        self.cls_score = _conv3x3(channels, num_classes)
        self.bbox_pred = _conv3x3(channels, num_box_values)
        self.alignment = _align_module(num_layers * channels, channels // 4, 1)
        self.side_offsets = _align_module(num_layers * channels, channels // 4, 8)
        self.scales = nn.ModuleList([Scale() for _ in input_shape])
        self._init_weights(prior_prob)

    def _init_weights(self, prior_prob: float) -> None:
        parts = (self.cls_decomposition, self.bbox_decomposition)
        # All layers start with the same weight, and sides with an offset of 0.
        small = {
            conv
            for part in (*(x.layer_attention for x in parts), self.side_offsets)
            for conv in part.modules()
        }
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, mean=0, std=0.001 if module in small else 0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        prior = -math.log((1 - prior_prob) / prior_prob)
        nn.init.constant_(self.cls_score.bias, prior)
        nn.init.constant_(self.alignment[-1].bias, prior)

    def check_fit(self, anchor_generator: nn.Module, box2box_transform) -> None:
        """Checks that the other parts of a detector take what this head predicts.

        Raises:
            ValueError: They do not; the message says what to set.
        """
        coder = box2box_transform
        if not isinstance(coder, PointDistances) or coder.clamp:
            raise ValueError(
                "TOODHead predicts distances that may be negative, which "
                f"{type(coder).__name__} does not take: set box2box_transform to "
                "PointDistances(clamp=False)"
            )
        offset = getattr(anchor_generator, "offset", self.anchor_offset)
        if offset != self.anchor_offset:
            raise ValueError(
                f"the head was built for anchor_offset={self.anchor_offset}, but the anchor "
                f"generator has offset={offset}: set both to the same number"
            )

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        """Predicts classes and boxes from all levels.

        Args:
            features: L maps, each (N, C, H, W), from high to low resolution.

        Returns:
            Two lists of L maps in float32: logits (N, K, H, W) of the scores, and distances (N, 4,
            H, W) to the left, top, right and bottom side, in strides.
        """
        if len(features) != len(self.scales):
            raise ValueError(
                f"the head was built for {len(self.scales)} levels, got {len(features)}"
            )
        logits, distances = [], []
        # torch.jit.script unrolls a list of modules, which it cannot zip with a list of tensors.
        for level, scale in enumerate(self.scales):
            x = features[level]
            outputs = []
            for conv in self.shared_convs:
                x = conv(x)
                outputs.append(x)
            shared = torch.cat(outputs, dim=1)  # (N, S C, H, W)
            pooled = shared.mean(dim=(2, 3), keepdim=True)
            cls_logits = self.cls_score(self.cls_decomposition(shared, pooled))
            logits.append(geometric_mean_logits(cls_logits, self.alignment(shared)))
            first = widen(self.bbox_pred(self.bbox_decomposition(shared, pooled)))
            first = scale(first.clamp(max=self.max_log_distance).exp())
            offsets = self.side_offsets(shared)
            distances.append(sample_sides(first, offsets, self.anchor_offset))
        return [logits, distances]


def geometric_mean_logits(a: Tensor, b: Tensor) -> Tensor:
    """Computes the logits of sqrt(sigmoid(a) sigmoid(b)), broadcast, in at least float32.

    With p this score, p / (1 - p) = (1 + 1 / p) / E, where E = 1 / p^2 - 1 = exp(-a) + exp(-b) +
    exp(-a - b). No term of its logarithm overflows, and no gradient is above 1.
    """
    a, b = -widen(a), -widen(b)
    log_1_plus_b = F.softplus(b)
    minus_log_p = (F.softplus(a) + log_1_plus_b) / 2
    return F.softplus(minus_log_p) - torch.logaddexp(b, a + log_1_plus_b)


def sample_sides(distances: Tensor, offsets: Tensor, anchor_offset: float) -> Tensor:
    """Replaces each side of a box by that of the box at an offset, read bilinearly (Eq. 7).

    Sides are coordinates in strides, measured from the border of the image; they are 0 outside the
    map. A box that turns inside out is kept as it was. Positions are computed in float32.

    Args:
        distances: (N, 4, H, W) from the anchors' centers to the left, top, right and bottom side,
            in strides.
        offsets: (N, 8, H, W), (dy, dx) of each of the four sides, in cells.
        anchor_offset: See :class:`TOODHead`.

    Returns:
        The distances (N, 4, H, W) of the new sides.
    """
    num_images, _, height, width = distances.shape
    offsets = widen(offsets).reshape(num_images, 4, 2, height, width)
    rows = torch.arange(height, device=distances.device).to(distances.dtype)[:, None]  # (H, 1)
    columns = torch.arange(width, device=distances.device).to(distances.dtype)  # (W,)
    x, y = columns + anchor_offset, rows + anchor_offset
    left, top, right, bottom = distances.unbind(dim=1)
    sides = torch.stack((x - left, y - top, x + right, y + bottom), dim=1)  # (N, 4, H, W)

    y_idxs, y_weights = _neighbors(rows, offsets[:, :, 0], height)  # (N, 4, 2, H, W)
    x_idxs, x_weights = _neighbors(columns, offsets[:, :, 1], width)
    idxs = y_idxs[:, :, :, None] * width + x_idxs[:, :, None]  # (N, 4, 2, 2, H, W)
    weights = y_weights[:, :, :, None] * x_weights[:, :, None]
    values = sides.flatten(2).gather(2, idxs.flatten(2)).view_as(weights)
    sampled = (values * weights).sum(dim=(2, 3))

    is_inverted = (sampled[:, :2] > sampled[:, 2:]).any(dim=1, keepdim=True)  # (N, 1, H, W)
    left, top, right, bottom = torch.where(is_inverted, sides, sampled).unbind(dim=1)
    return torch.stack((x - left, y - top, right - x, bottom - y), dim=1)


def _neighbors(cells: Tensor, offsets: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the two cells around each position along one axis, and their weights.

    Args:
        cells: Index of each cell along the axis, broadcast with the offsets.
        offsets: (N, 4, H, W).
        size: Number of cells along the axis.

    Returns:
        Indices int64 and weights, (N, 4, 2, H, W) each; the weight of a cell outside is 0.
    """
    whole = offsets.floor()
    fraction = offsets - whole
    first = cells + whole
    idxs = torch.stack((first, first + 1), dim=2)
    weights = torch.stack((1 - fraction, fraction), dim=2)
    weights = weights * ((idxs >= 0) & (idxs < size))
    return idxs.long().clamp(min=0, max=size - 1), weights


def _conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)


def _align_module(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    hidden = max(hidden, 1)
    return nn.Sequential(
        nn.Conv2d(in_channels, hidden, kernel_size=1), nn.ReLU(), _conv3x3(hidden, out_channels)
    )
