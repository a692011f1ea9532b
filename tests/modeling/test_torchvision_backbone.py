import copy
import threading

import pytest
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from atss_d2.config import add_atss_config
from atss_d2.modeling.backbones import build_fpn_with_p6p7
from atss_d2.modeling.torchvision_backbone import TorchvisionBackbone

RES2_TO_RES5 = ("res2", "res3", "res4", "res5")

# name: (module that ends res2 ... res5 in torchvision's own forward, channels there)
FAMILIES = {
    "mobilenet_v2": (
        ("features.3", "features.6", "features.13", "features.18"),
        (24, 32, 96, 1280),
    ),
    "mobilenet_v3_large": (
        ("features.3", "features.6", "features.12", "features.16"),
        (24, 40, 112, 960),
    ),
    "efficientnet_b0": (
        ("features.2", "features.3", "features.5", "features.8"),
        (24, 40, 112, 1280),
    ),
    "convnext_tiny": (
        ("features.1", "features.3", "features.5", "features.7"),
        (96, 192, 384, 768),
    ),
    "mnasnet0_5": (("layers.8", "layers.9", "layers.11", "layers.16"), (16, 24, 48, 1280)),
    "resnet18": (("layer1", "layer2", "layer3", "layer4"), (64, 128, 256, 512)),
    "regnet_y_400mf": (
        tuple(f"trunk_output.block{i}" for i in (1, 2, 3, 4)),
        (48, 104, 208, 440),
    ),
    "shufflenet_v2_x0_5": (("maxpool", "stage2", "stage3", "conv5"), (24, 48, 96, 1024)),
    "swin_t": (("features.1", "features.3", "features.5", "features.7"), (96, 192, 384, 768)),
}
CLASSIFIER = ("classifier.", "fc.", "head.", "norm.")


def _frozen(backbone):
    """Names of the first two levels of modules whose parameters are frozen."""
    return {
        ".".join(n.split(".")[:2]) for n, p in backbone.named_parameters() if not p.requires_grad
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_features_equal_torchvisions_forward_with_its_state_dict(name):
    modules, channels = FAMILIES[name]
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)

    backbone = TorchvisionBackbone(name=name, out_features=RES2_TO_RES5).eval()
    missing, unexpected = backbone.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert all(
        key.startswith(CLASSIFIER) or key.endswith("num_batches_tracked") for key in unexpected
    )

    extractor = create_feature_extractor(model, dict(zip(modules, RES2_TO_RES5, strict=True)))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features, expected = backbone(image), extractor(image)
    assert list(features) == list(RES2_TO_RES5)
    for feature, c, stride in zip(RES2_TO_RES5, channels, (4, 8, 16, 32), strict=True):
        shape = backbone.output_shape()[feature]
        assert (shape.channels, shape.stride) == (c, stride)
        assert features[feature].shape == (1, c, 64 // stride, 96 // stride)
        reference = expected[feature]
        if name == "swin_t":  # (N, H, W, C)
            reference = reference.permute(0, 3, 1, 2)
        torch.testing.assert_close(features[feature], reference)


@pytest.mark.parametrize("name", FAMILIES)
def test_fpn_takes_images_of_odd_size(name):
    fpn = build_fpn_with_p6p7(TorchvisionBackbone(name=name), out_channels=32).to("meta")
    images = ImageList.from_tensors([torch.zeros(3, 333, 517)], fpn.size_divisibility)
    features = fpn(images.tensor.to("meta"))  # padded to 352 x 544
    assert {key: tuple(value.shape) for key, value in features.items()} == {
        "p3": (1, 32, 44, 68),
        "p4": (1, 32, 22, 34),
        "p5": (1, 32, 11, 17),
        "p6": (1, 32, 6, 9),
        "p7": (1, 32, 3, 5),
    }


# They have BatchNorm, Dropout and StochasticDepth, whose training mode has side effects.
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "swin_t"])
def test_construction_draws_no_more_random_numbers_than_torchvision(name):
    torch.manual_seed(1)
    model = models.get_model(name, weights=None)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    backbone = TorchvisionBackbone(name=name, norm="BN")
    torch.testing.assert_close(torch.get_rng_state(), state)
    assert all(module.training for module in backbone.modules())
    # Also no BatchNorm statistics were collected while shapes were found out.
    expected = model.state_dict()
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize(
    ("name", "freeze_at", "expected"),
    [
        ("mobilenet_v2", 0, set()),
        ("mobilenet_v2", 1, {"features.0", "features.1"}),
        ("mobilenet_v2", 2, {f"features.{i}" for i in range(4)}),
        ("mobilenet_v2", 5, {f"features.{i}" for i in range(19)}),
        ("resnet18", 1, {"conv1.weight"}),
        ("resnet18", 3, {"conv1.weight", "layer1.0", "layer1.1", "layer2.0", "layer2.1"}),
        # The stem has stride 4 here.
        ("convnext_tiny", 1, {"features.0"}),
        ("convnext_tiny", 2, {"features.0", "features.1"}),
        ("regnet_y_400mf", 2, {"stem.0", "trunk_output.block1"}),
    ],
)
def test_freeze_at(name, freeze_at, expected):
    backbone = TorchvisionBackbone(name=name, norm="BN", freeze_at=freeze_at)
    assert _frozen(backbone) == expected
    for key, module in backbone.named_modules():
        step = ".".join(key.split(".")[:2])
        is_frozen = step in expected or (key == "bn1" and freeze_at) or key.startswith("stem")
        if isinstance(module, nn.BatchNorm2d):
            assert not is_frozen, key
        if isinstance(module, FrozenBatchNorm2d):
            assert is_frozen, key


def test_frozen_part_does_not_change_in_training():
    torch.manual_seed(0)
    backbone = TorchvisionBackbone(name="resnet18", norm="BN", freeze_at=2)
    before = copy.deepcopy(backbone.state_dict())
    sum(feature.sum() for feature in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    torch.optim.SGD(backbone.parameters(), lr=0.1).step()
    changed = {
        key.split(".")[0] for key, v in backbone.state_dict().items() if (v != before[key]).any()
    }
    assert changed == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("FrozenBN", FrozenBatchNorm2d),
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("naiveSyncBN", NaiveSyncBatchNorm),
    ],
)
@pytest.mark.parametrize("name", ["mobilenet_v3_large", "resnet18"])
def test_norm(name, norm, kind):
    torch.manual_seed(0)
    plain = TorchvisionBackbone(name=name, norm="BN")
    torch.manual_seed(0)
    backbone = TorchvisionBackbone(name=name, norm=norm)
    norms = [
        (key, module) for key, module in plain.named_modules() if type(module) is nn.BatchNorm2d
    ]
    assert norms
    for key, module in norms:
        converted = backbone.get_submodule(key)
        assert type(converted) is kind
        assert converted.eps == module.eps  # 0.001 in MobileNetV3, not the usual 1e-5
        if kind is not FrozenBatchNorm2d:
            assert converted.momentum == module.momentum
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone.eval()(image), plain.eval()(image))


def test_norm_leaves_layer_norm_alone():
    backbone = TorchvisionBackbone(name="convnext_tiny")
    assert isinstance(backbone.features[0][1], nn.LayerNorm)
    assert not any(isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d)) for m in backbone.modules())


@pytest.mark.parametrize(
    ("name", "out_features", "last", "divisibility"),
    [
        ("mobilenet_v2", ("res3",), "features.6", 8),
        ("mobilenet_v2", ("res4", "res3"), "features.13", 16),
        ("resnet18", ("res2",), "layer1.1", 4),
        ("shufflenet_v2_x0_5", ("res4",), "stage3.7", 16),
        ("densenet121", ("res3",), "features.denseblock2", 8),
    ],
)
def test_unused_tail_is_dropped_and_everything_left_gets_gradients(
    name, out_features, last, divisibility
):
    backbone = TorchvisionBackbone(name=name, out_features=out_features, norm="BN")
    assert list(backbone.output_shape()) == sorted(out_features)
    assert backbone.size_divisibility == divisibility
    assert list(dict(backbone.named_parameters()))[-1].startswith(last)
    features = backbone(torch.randn(2, 3, 32, 32))
    assert list(features) == sorted(out_features)
    sum(feature.sum() for feature in features.values()).backward()
    assert [key for key, p in backbone.named_parameters() if p.grad is None] == []


def test_weights_are_taken_from_torchvision(monkeypatch):
    source = models.mobilenet_v2()
    asked = []

    def load_state_dict_from_url(url, **kwargs):
        asked.append(url)
        return source.state_dict()

    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", load_state_dict_from_url
    )
    for weights in ("IMAGENET1K_V1", "MobileNet_V2_Weights.IMAGENET1K_V1"):
        backbone = TorchvisionBackbone(name="mobilenet_v2", weights=weights)
        torch.testing.assert_close(backbone.features[0][0].weight, source.features[0][0].weight)
    assert asked == [models.MobileNet_V2_Weights.IMAGENET1K_V1.url] * 2


def test_models_of_other_threads_run_while_a_backbone_is_built():
    """A server loads the next model while it answers with the present one."""
    model, done, errors = nn.Linear(1, 1), threading.Event(), []

    def serve():
        while not done.is_set():
            try:
                model(torch.ones(1))
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        TorchvisionBackbone(name="resnet18")
    finally:
        done.set()
        thread.join()
    assert errors == []


def test_lazy_config_leaves_plain_python_in_the_module():
    config = LazyCall(TorchvisionBackbone)(name="mobilenet_v2", out_features=["res4", "res3"])
    backbone = instantiate(config)
    assert type(backbone._out_features) is list
    assert all(type(feature) is str for feature in backbone.output_shape())
    copy.deepcopy(backbone)


def _cfg(**torchvision):
    cfg = get_cfg()
    add_atss_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_torchvision_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    for key, value in torchvision.items():
        cfg.MODEL.TORCHVISION[key] = value
    return cfg


def test_registry_builds_what_the_keys_say():
    fpn = build_backbone(_cfg(NAME="mobilenet_v3_large", NORM="BN"))
    assert list(fpn.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    assert fpn.top_block.in_feature == "p5"
    assert fpn.top_block.p6.in_channels == 32
    assert fpn.bottom_up.output_shape()["res5"].channels == 960
    assert _frozen(fpn.bottom_up) == {"features.0", "features.1"}
    assert isinstance(fpn.bottom_up.features[4].block[0][1], nn.BatchNorm2d)

    cfg = _cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    cfg.MODEL.FPN.NORM = "GN"
    fpn = build_backbone(cfg)
    assert list(fpn.output_shape()) == ["p3", "p4", "p5", "p6"]
    assert _frozen(fpn) == set()
    assert isinstance(fpn.bottom_up.features[0][1], FrozenBatchNorm2d)
    assert isinstance(fpn.fpn_lateral3.norm, nn.GroupNorm)


def test_cfg_keys_are_the_arguments_that_detectron2_has_no_key_for():
    cfg = _cfg()
    assert dict(cfg.MODEL.TORCHVISION) == {
        "NAME": "mobilenet_v2",
        "WEIGHTS": None,
        "NORM": "FrozenBN",
    }
    cfg.merge_from_list(["MODEL.TORCHVISION.WEIGHTS", "IMAGENET1K_V9"])
    with pytest.raises(ValueError, match="weights of mobilenet_v2 has no choice 'IMAGENET1K_V9'"):
        build_backbone(cfg)


def test_registry_refuses_images_without_three_channels():
    cfg = _cfg()
    cfg.MODEL.PIXEL_MEAN = [100.0]
    with pytest.raises(ValueError, match=r"3 channels, but MODEL\.PIXEL_MEAN has 1"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name": "mobilnet_v2"}, "name has no choice 'mobilnet_v2'; nearest: mobilenet_v2"),
        ({"name": "maxvit_t"}, "maxvit_t is not a chain"),
        ({"name": "squeezenet1_0"}, "no feature map of stride 8, so no res3; .* none"),
        ({"out_features": ("p3",)}, "out_features has no choice 'p3'; nearest: res2, res3"),
        ({"out_features": ()}, "out_features is empty"),
        ({"norm": "GN"}, "norm has no choice 'GN'"),
        ({"freeze_at": 6}, "freeze_at must be in 0 .. 5 .*, got 6"),
        ({"weights": "IMAGENET1K"}, "nearest: IMAGENET1K_V"),
    ],
)
def test_errors_name_the_value_and_the_fix(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionBackbone(**kwargs)
