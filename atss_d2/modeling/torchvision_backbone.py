"""Any torchvision feature extractor as a Detectron2 backbone.

torchvision's classifiers end in pooling and linear layers; before them is a chain of modules, each
called with the output of the previous one. :class:`TorchvisionBackbone` keeps that chain under
torchvision's own parameter names and taps it where a stride ends. Running shapes through the chain
finds these places and their channels, so there is no table of architectures to keep up to date.

torchvision's ``create_feature_extractor`` returns the same maps. It is not used because it replaces
``nn.Module.__call__`` in all threads while it traces: a model running in another thread fails.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, fx, nn
from torch.func import functional_call
from torchvision import models
from torchvision.models.swin_transformer import SwinTransformer

from .backbones import build_fpn_with_p6p7, fpn_options

__all__ = ["TorchvisionBackbone", "build_torchvision_fpn_backbone"]

_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
_BATCH_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

# Attributes of a torchvision classifier that its forward() calls one after the other up to the
# pooling. The first line whose names all exist describes the network.
_CHAINS = (
    ("features",),  # MobileNet, EfficientNet, ConvNeXt, DenseNet, VGG, Swin
    ("layers",),  # MNASNet
    ("stem", "trunk_output"),  # RegNet
    ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),  # ResNet, ResNeXt
    ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),  # ShuffleNetV2
)

# A multiple of 32 with unequal sides; the network sees it on the meta device only.
_PROBE_SIZE = (192, 256)


class TorchvisionBackbone(Backbone):
    """A torchvision image classifier without its head, giving feature maps of stride 4 to 32.

    Feature ``res2`` is the deepest feature map of stride 4, ``res3`` of stride 8, ``res4`` of
    stride 16 and ``res5`` of stride 32. Parameters have torchvision's names
    (``features.0.0.weight``), so a torchvision state dict loads with ``strict=False``: left over
    are the classifier and what comes after the last requested feature. Swin's maps are permuted to
    (N, C, H, W); they are the unchanged outputs of its stages, without an extra norm.
    """

    def __init__(
        self,
        *,
        name: str = "mobilenet_v2",
        weights: str | None = None,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        norm: str = "FrozenBN",
        freeze_at: int = 0,
    ):
        """
        Args:
            name: torchvision's name of the classifier, as in ``torchvision.models.list_models()``.
            weights: Name of torchvision weights to download, e.g. ``"IMAGENET1K_V1"`` or
                ``"DEFAULT"``. None initializes at random, as torchvision does.
            out_features: Features to return, any of ``"res2"`` ... ``"res5"``. Layers
                after the deepest of them are dropped.
            norm: What BatchNorm layers are replaced by: ``"FrozenBN"`` (fixed statistics and affine
                parameters: only sensible when pretrained weights are loaded), ``"BN"``, or one of
                Detectron2's synchronized kinds (``"SyncBN"``, ``"naiveSyncBN"``). Other
                normalization layers, such as ConvNeXt's LayerNorm, stay as they are.
            freeze_at: As in Detectron2's ResNet: 0 trains everything, 1 freezes the stem, 2 also
                the blocks of res2, and so on to 5. The stem is the first module of the network
                and all of stride 2. Frozen parameters get no gradient; frozen BatchNorms become
                FrozenBN.

        Raises:
            ValueError: An unknown network, weights, feature or norm, a network whose structure is
                not a chain, or one without a feature map of a requested stride.
        """
        super().__init__()
        _check_choice("norm", norm, _BATCH_NORMS)
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"freeze_at must be in 0 .. 5 (5 freezes up to res5), got {freeze_at}")
        # From a LazyConfig this is a ListConfig, which must not stay in a module.
        self._out_features = sorted({str(feature) for feature in out_features})
        if not self._out_features:
            raise ValueError(f"out_features is empty, choose from {', '.join(_STRIDES)}")
        for feature in self._out_features:
            _check_choice("out_features", feature, _STRIDES)

        model = _build_torchvision_model(name, weights)
        self._channels_last = isinstance(model, SwinTransformer)
        for root in _find_chain(model, name):
            self.add_module(root, getattr(model, root))

        shapes = self._probe_shapes()
        last_of_stride = {shape.stride: step for step, shape in shapes.items()}
        for feature in self._out_features:
            if _STRIDES[feature] not in last_of_stride:
                found = [key for key, stride in _STRIDES.items() if stride in last_of_stride]
                raise ValueError(
                    f"{name} has no feature map of stride {_STRIDES[feature]}, so no {feature}; "
                    f"its features are: {', '.join(found) or 'none'}"
                )
        self._taps = {last_of_stride[_STRIDES[feature]]: feature for feature in self._out_features}
        self._out_feature_strides = {feature: _STRIDES[feature] for feature in self._out_features}
        self._out_feature_channels = {
            feature: shapes[step].channels for step, feature in self._taps.items()
        }

        self._drop_unused_modules()
        _convert_batch_norms(self, norm)
        self._freeze(freeze_at, shapes)

    @property
    def size_divisibility(self) -> int:
        """The largest stride: networks that cut images into patches drop an incomplete last one."""
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Computes the requested features.

        Args:
            x: Images (N, 3, H, W); H and W should be multiples of :attr:`size_divisibility`.

        Returns:
            Features (N, C, H / stride, W / stride) by name, see :meth:`output_shape`.
        """
        features = {}
        for step, module in self._steps():
            x = module(x)
            if step in self._taps:
                features[self._taps[step]] = self._to_nchw(x)
        return features

    def _to_nchw(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2) if self._channels_last else x

    def __prepare_scriptable__(self) -> nn.Module:
        """Returns what ``torch.jit.script`` compiles in place of this class: the loop unrolled."""
        graph = fx.Graph()
        x, features = fx.Proxy(graph.placeholder("x", Tensor)), {}
        for step, _ in self._steps():
            x = fx.Proxy(graph.call_module(step, (x.node,)))
            if step in self._taps:
                features[self._taps[step]] = self._to_nchw(x).node
        graph.output(features)
        return fx.GraphModule(self, graph)

    def _steps(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields dotted name and module of every step, entering containers one level deep."""
        for root, module in self.named_children():
            if isinstance(module, nn.Sequential):
                for name, step in module.named_children():
                    yield f"{root}.{name}", step
            else:
                yield root, module

    @torch.no_grad()
    def _probe_shapes(self) -> dict[str, ShapeSpec]:
        """Returns channels and stride after every step whose output has a whole stride.

        Runs on copies of parameters and buffers on the meta device: nothing is computed, and
        neither BatchNorm statistics nor random generators change.
        """
        shapes = {}
        x = torch.zeros(1, 3, *_PROBE_SIZE, device="meta")
        for step, module in self._steps():
            state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            x = functional_call(module, {k: v.to("meta") for k, v in state.items()}, x)
            channels, height, width = self._to_nchw(x).shape[1:]
            stride = _PROBE_SIZE[0] // height
            if (height * stride, width * stride) == _PROBE_SIZE:
                shapes[step] = ShapeSpec(channels=channels, stride=stride)
        return shapes

    def _drop_unused_modules(self) -> None:
        """Removes what comes after the last tap.

        It would cost memory, and its parameters would never get a gradient, which
        DistributedDataParallel rejects.
        """
        for step, _ in reversed(list(self._steps())):
            if step in self._taps:
                break
            parent, _, key = step.rpartition(".")
            delattr(self.get_submodule(parent), key)

    def _freeze(self, freeze_at: int, shapes: dict[str, ShapeSpec]) -> None:
        """Freezes the stem and the steps up to stride 2 ** freeze_at."""
        if freeze_at == 0:
            return
        stride = 1
        for index, (step, module) in enumerate(list(self._steps())):
            stride = shapes[step].stride if step in shapes else stride
            if index > 0 and stride > 2**freeze_at:
                break
            module.requires_grad_(False)
            parent, _, key = step.rpartition(".")
            frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(module)
            self.get_submodule(parent).add_module(key, frozen)


def _check_choice(argument: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=3, cutoff=0.4) or choices
        raise ValueError(f"{argument} has no choice '{value}'; nearest: {', '.join(near)}")


def _build_torchvision_model(name: str, weights: str | None) -> nn.Module:
    _check_choice("name", name, models.list_models(module=models))
    if weights is not None:
        known = models.get_model_weights(name)
        _check_choice(f"weights of {name}", weights.split(".")[-1], list(known.__members__))
    return models.get_model(name, weights=weights)


def _find_chain(model: nn.Module, name: str) -> tuple[str, ...]:
    children = dict(model.named_children())
    for chain in _CHAINS:
        if all(root in children for root in chain):
            return chain
    raise ValueError(
        f"{name} is not a chain of modules that ends in feature maps of growing stride; choose a "
        "MobileNet, EfficientNet, ConvNeXt, MNASNet, RegNet, ResNet, ShuffleNet or Swin"
    )


def _convert_batch_norms(module: nn.Module, norm: str) -> None:
    """Replaces every BatchNorm below ``module`` by Detectron2's ``norm``, with the same values."""
    if norm == "BN":
        return
    if norm == "FrozenBN":
        FrozenBatchNorm2d.convert_frozen_batchnorm(module)
        return
    for key, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            new = get_norm(norm, child.num_features)
            new.load_state_dict(child.state_dict())
            new.eps, new.momentum = child.eps, child.momentum
            module.add_module(key, new)
        else:
            _convert_batch_norms(child, norm)


@BACKBONE_REGISTRY.register()
def build_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Builds a torchvision network with FPN and two extra levels, P6 and P7 from P5.

    Reads ``MODEL.TORCHVISION.*``, ``MODEL.BACKBONE.FREEZE_AT``, ``MODEL.FPN.*`` and
    ``MODEL.ATSS.FPN.*``.
    """
    if input_shape.channels != 3:
        raise ValueError(
            "torchvision networks take images of 3 channels, but MODEL.PIXEL_MEAN has "
            f"{input_shape.channels} values"
        )
    bottom_up = TorchvisionBackbone(
        out_features=cfg.MODEL.FPN.IN_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        name=cfg.MODEL.TORCHVISION.NAME,
        weights=cfg.MODEL.TORCHVISION.WEIGHTS,
        norm=cfg.MODEL.TORCHVISION.NORM,
    )
    return build_fpn_with_p6p7(
        bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
        **fpn_options(cfg),
    )
