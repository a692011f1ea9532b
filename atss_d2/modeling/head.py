"""The dense head: two towers shared by all levels, three predictors, one scalar per level.

Shapes: N images, L levels of size Hi x Wi, A anchors per location, K classes, D values of a box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec, get_norm
from fvcore.common.registry import Registry
from torch import Tensor, nn

from .deform_conv import DeformConv2d, ModulatedDeformConvPack

HEAD_REGISTRY = Registry("HEAD")
HEAD_REGISTRY.__doc__ = """Dense heads by name, for ``MODEL.ATSS.HEAD.NAME``.

The keyword arguments of a class registered by ``@HEAD_REGISTRY.register()`` are the keys of
``MODEL.ATSS.HEAD``, and those of the node ``MODEL.ATSS.MY_HEAD`` that a cfg may have for
``MyHead``; ``input_shape``, ``num_classes``, ``num_anchors`` and ``num_box_values`` come from the
other parts.
"""


class Scale(nn.Module):
    """Multiplies its input by one learnable scalar."""

    def __init__(self, init_value: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@HEAD_REGISTRY.register()
class ATSSHead(nn.Module):
    """RetinaNet's head with GroupNorm, a centerness predictor and per-level scalars (Sec. 3.1).

    Each branch is a tower of ``[conv 3x3, norm, ReLU]`` blocks and a predictor; centerness is
    predicted from the box tower. Module names are those of Detectron2's RetinaNet and FCOS heads,
    so their weights fit: with ``norm=""``, ``with_centerness=False`` and ``with_scales=False`` it
    is RetinaNet's head, with ``with_scales=False`` FCOS's.
    """

    predicts_first_boxes = False

    def __init__(
        self,
        *,
        input_shape: Sequence[ShapeSpec],
        num_classes: int,
        num_anchors: int = 1,
        num_box_values: int = 4,
        conv_dims: Sequence[int] = (256, 256, 256, 256),
        norm: str = "GN",
        conv_bias: bool = True,
        deform_first_conv: bool = False,
        deform_last_conv: bool = False,
        prior_prob: float = 0.01,
        with_centerness: bool = True,
        with_scales: bool = True,
        bbox_pred_bias: float = 0.0,
        pred_kernel_size: int = 3,
    ) -> None:
        """
        Args:
            input_shape: Shape of each of the L levels; all have the same number of channels.
            num_classes: K, foreground classes.
            num_anchors: A, anchors per location.
            num_box_values: D, values that the box coder takes for an anchor.
            conv_dims: Channels of each convolution of a tower.
            norm: Norm after each tower convolution, see :func:`detectron2.layers.get_norm`;
                ``""`` for none.
            conv_bias: Whether the tower convolutions have a bias, as in the authors' code;
                mmdetection's have none.
            deform_first_conv: Whether the first convolution of both towers is a deformable one
                without masks, as in DDOD.
            deform_last_conv: Whether the last convolution of both towers is a modulated deformable
                convolution, as in the authors' DCN models.
            prior_prob: Initial score of every class.
            with_centerness: Whether centerness is predicted (Table 1, "Centerness").
            with_scales: Whether each level has a scalar on its box output (Table 1, "Scalar").
            bbox_pred_bias: Initial bias of the box predictor: 0 for deltas from an anchor; 4 in the
                paper's regression from a point (:class:`PointDistances`), which then starts with
                boxes as large as an anchor of 8 strides.
            pred_kernel_size: Side of the kernels of the predictors, an odd number; 1 with
                ``conv_dims=[]`` after :class:`DyHead`.

        Raises:
            ValueError: ``num_classes`` or ``num_anchors`` is below 1, ``prior_prob`` is not between
                0 and 1, ``pred_kernel_size`` is even, the levels differ in channels, or a
                deformable convolution is requested for towers without convolutions.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be >= 1, got {num_classes}")
        if num_anchors < 1:
            raise ValueError(f"num_anchors must be >= 1, got {num_anchors}")
        if num_box_values < 1:
            raise ValueError(f"num_box_values must be >= 1, got {num_box_values}")
        if not 0 < prior_prob < 1:
            raise ValueError(f"prior_prob must be between 0 and 1, got {prior_prob}")
        if pred_kernel_size < 1 or pred_kernel_size % 2 == 0:
            raise ValueError(f"pred_kernel_size must be an odd number, got {pred_kernel_size}")
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(
                "the head is shared by all levels, which must have the same number of channels, "
                f"got {[shape.channels for shape in input_shape]}"
            )
        for name, value in (("first", deform_first_conv), ("last", deform_last_conv)):
            if value and not len(conv_dims):
                raise ValueError(
                    f"deform_{name}_conv needs at least one convolution in conv_dims, got []"
                )
        self.in_channels = in_channels = channels.pop()
        self.num_classes = num_classes
        self.num_anchors = num_anchors
        self.num_box_values = num_box_values
        self.predicts_quality = with_centerness

        tower = (in_channels, conv_dims, norm, conv_bias, deform_first_conv, deform_last_conv)
        self.cls_subnet = _make_tower(*tower)
        self.bbox_subnet = _make_tower(*tower)
        out_channels = conv_dims[-1] if len(conv_dims) else in_channels
        side = pred_kernel_size
        self.cls_score = _conv(out_channels, num_anchors * num_classes, side)
        self.bbox_pred = _conv(out_channels, num_anchors * num_box_values, side)
        self.ctrness = _conv(out_channels, num_anchors, side) if with_centerness else None
        self.scales = nn.ModuleList(
            [Scale() if with_scales else nn.Identity() for _ in input_shape]
        )
        self._init_weights(prior_prob, bbox_pred_bias)

    def _init_weights(self, prior_prob: float, bbox_pred_bias: float) -> None:
        offset_convs = {m.offset for m in self.modules() if isinstance(m, ModulatedDeformConvPack)}
        for module in self.modules():
            # Offset predictors start at zero: a deformable convolution starts as a plain one with
            # its masks at 0.5.
            if isinstance(module, (nn.Conv2d, DeformConv2d)) and module not in offset_convs:
                nn.init.normal_(module.weight, mean=0, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Every score starts at the prior: see "Focal Loss for Dense Object Detection", Sec. 4.1.
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
        nn.init.constant_(self.bbox_pred.bias, bbox_pred_bias)

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        """Predicts classes, boxes and, optionally, centerness from all levels.

        Args:
            features: L maps, each (N, C, Hi, Wi), from high to low resolution.

        Returns:
            Three lists of L maps: class logits (N, A K, Hi, Wi), box regression (N, A D, Hi, Wi)
            and centerness logits (N, A, Hi, Wi); only the first two without ``with_centerness``.
        """
        if len(features) != len(self.scales):
            raise ValueError(
                f"the head was built for {len(self.scales)} levels, got {len(features)}"
            )
        logits, deltas, centerness = [], [], []
        # torch.jit.script unrolls a list of modules, which it cannot zip with a list of tensors.
        for level, scale in enumerate(self.scales):
            feature = features[level]
            logits.append(self.cls_score(self.cls_subnet(feature)))
            box_feature = self.bbox_subnet(feature)
            deltas.append(scale(self.bbox_pred(box_feature)))
            if self.ctrness is not None:
                centerness.append(self.ctrness(box_feature))
        return [logits, deltas] if self.ctrness is None else [logits, deltas, centerness]


def _conv(in_channels: int, out_channels: int, side: int = 3, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, side, padding=side // 2, bias=bias)


def _make_tower(
    in_channels: int,
    conv_dims: Sequence[int],
    norm: str,
    conv_bias: bool,
    deform_first_conv: bool,
    deform_last_conv: bool,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, out_channels in enumerate(conv_dims):
        is_modulated = deform_last_conv and i == len(conv_dims) - 1
        if is_modulated or (deform_first_conv and i == 0):
            conv = ModulatedDeformConvPack(
                in_channels, out_channels, padding=1, bias=conv_bias, modulated=is_modulated
            )
        else:
            conv = _conv(in_channels, out_channels, bias=conv_bias)
        layers.append(conv)
        if norm:
            layers.append(get_norm(norm, out_channels))
        layers.append(nn.ReLU())
        in_channels = out_channels
    return nn.Sequential(*layers)
