"""Weights of other implementations: every name and value, and what the converted models compute.

The checkpoints are random ones in the layouts of the originals (tests/foreign_checkpoints.py); what
they should compute is said by torchvision's ResNet, a few lines of plain torch, and the published
numbers (tests/assets).
"""

import copy
import functools
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import Boxes, ImageList, Instances
from torchvision.ops import deform_conv2d

from atss_d2 import get_config
from atss_d2.checkpoint import (
    CheckpointError,
    ConversionError,
    apply_convention,
    convert_state_dict,
)
from atss_d2.checkpoint.architecture import Architecture
from atss_d2.checkpoint.conventions import config_value
from atss_d2.engine import apply_overrides
from atss_d2.modeling.box_coding import PointDistances
from tests import foreign_checkpoints as foreign
from tests import reference

published = reference.published()

MAKERS = {"authors": foreign.authors, "mmdet": foreign.mmdet}
DCN = {"dcn": (False, True, True, True), "dcn_in_tower": True}
X_DCN = {"blocks": foreign.R_101, "dcn": (False, False, True, True), "dcn_in_tower": True}
# Checkpoint -> the config that it should be recognized as.
MODELS = {
    "R-50": ({}, "coco/atss_R_50_FPN_1x"),
    "R-50-DCN": (DCN, "coco/atss_dcnv2_R_50_FPN_1x"),
    "R-101": ({"blocks": foreign.R_101}, "coco/atss_R_101_FPN_2x"),
    "X-101-32x8d-DCN": (
        {**X_DCN, "groups": 32, "width": 8},
        "coco/atss_dcnv2_X_101_32x8d_FPN_2x",
    ),
    "X-101-64x4d": (
        {"blocks": foreign.R_101, "groups": 64, "width": 4},
        "coco/atss_X_101_64x4d_FPN_2x",
    ),
}


@functools.lru_cache(maxsize=4)
def checkpoint(convention, **options):
    """Random weights of a narrow ResNet-50; not to be changed."""
    return MAKERS[convention](**{"num_classes": 3, "channels": 64, "width": 8, **options})


def build(report):
    """The model in evaluation mode that a report describes."""
    return instantiate(report.architecture.config_with(report.convention).model).eval()


def converted_model(convention, **options):
    """The model of random weights."""
    weights, report = convert_state_dict({"state_dict": checkpoint(convention, **options)})
    model = build(report)
    model.load_state_dict(weights)
    return model


@functools.lru_cache
def weights_of_r_50(convention):
    """Names and shapes of ours."""
    return convert_state_dict(MAKERS[convention](device="meta")).state_dict


# --------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("convention", "name"),
    [
        *(("authors", name) for name in ("R-50", "R-50-DCN", "X-101-64x4d")),
        *(("mmdet", name) for name in ("R-50", "R-101", "X-101-32x8d-DCN")),
    ],
)
def test_every_key_finds_its_place(convention, name):
    options, config = MODELS[name]
    theirs = MAKERS[convention](**options, device="meta")
    weights, report = convert_state_dict(theirs)
    assert report.convention == convention
    assert report.architecture.config == config
    assert report.architecture.settings == {}
    with torch.device("meta"):
        model = build(report)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in weights.items()
    }
    assert [key.theirs for key in report.keys] == list(theirs)
    assert report.count("missing", "unexpected", "misshapen") == 0
    left = [key.theirs for key in report.keys if key.status == "left"]
    assert left == [k for k in theirs if "num_batches_tracked" in k or "anchor_generator" in k]


@pytest.mark.parametrize(("convention", "num_classes"), [("authors", 1), ("mmdet", 7)])
def test_what_no_config_has_is_a_change_of_one(convention, num_classes):
    theirs = MAKERS[convention](
        num_classes=num_classes, channels=64, blocks=(3, 8, 36, 3), device="meta", dcn_in_tower=True
    )
    weights, report = convert_state_dict(theirs)
    settings = report.architecture.settings
    assert settings["num_classes"] == num_classes
    assert settings["backbone.bottom_up.stages.depth"] == 152
    assert settings["backbone.out_channels"] == 64
    assert settings["head.deform_last_conv"] is True
    assert f"model.num_classes={num_classes}" in report.overrides
    with torch.device("meta"):
        assert build(report).state_dict().keys() == weights.keys()


@pytest.mark.parametrize(
    ("offset", "scale_shape"), [("conv2.conv_offset", ()), ("conv2_offset", (1,))]
)
def test_old_and_new_files_of_mmdetection(offset, scale_shape):
    theirs = foreign.mmdet(**DCN, name_of_offset=offset, scale_shape=scale_shape, device="meta")
    weights, _ = convert_state_dict(theirs)
    assert "backbone.bottom_up.res4.5.conv2_offset.bias" in weights
    assert weights["head.scales.4.scale"].shape == ()


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolutions_without_masks_are_recognized(modulated):
    theirs = foreign.mmdet(dcn=(False, False, False, True), device="meta")
    for key, value in theirs.items():
        if "conv_offset" in key:
            theirs[key] = torch.empty(27 if modulated else 18, *value.shape[1:], device="meta")
    report = convert_state_dict(theirs).report
    stages = report.architecture.config_with("mmdet").model.backbone.bottom_up.stages
    assert stages.get("deform_modulated", True) == modulated
    assert list(stages.deform_on_per_stage) == [False, False, False, True]


@pytest.mark.parametrize("convention", MAKERS)
def test_nests_and_prefixes(convention):
    expected = weights_of_r_50(convention)
    theirs = MAKERS[convention](device="meta")
    for name, nested in (
        ("auto", theirs),
        (convention, {"model": theirs, "iteration": 9}),
        ("auto", {"state_dict": theirs, "meta": {"epoch": 12}}),
        (convention, {"model": {f"module.{key}": x for key, x in theirs.items()}}),
        ("auto", {"state_dict": {f"module.module.{key}": x for key, x in theirs.items()}}),
        ("auto", {"checkpoint": 1, "model": {"state_dict": theirs}}),
    ):
        weights, _ = convert_state_dict(nested, name, expected=expected)
        assert weights.keys() == expected.keys()


# -------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("convention", MAKERS)
def test_values_stay_but_for_variances_and_scalars(convention):
    theirs = checkpoint(convention)
    weights, report = convert_state_dict(theirs)
    for key in report.keys:
        if key.status == "renamed":
            assert torch.equal(weights[key.ours], theirs[key.theirs])
    changed = {key.ours for key in report.keys if key.status == "changed"}
    frozen = {k for k in weights if k.startswith("backbone.") and k.endswith("running_var")}
    scales = {f"head.scales.{level}.scale" for level in range(5)}
    assert len(frozen) == 53
    assert changed == (frozen | scales if convention == "authors" else set())


def test_half_double_and_numpy_numbers_become_float32_tensors():
    expected, _ = convert_state_dict(checkpoint("mmdet"))
    expected = {k: v for k, v in expected.items() if k.startswith("head.")}
    theirs = {k: v for k, v in checkpoint("mmdet").items() if k.startswith("bbox_head.")}
    options = {"expected": expected}
    for change in (torch.Tensor.double, torch.nn.Parameter, torch.Tensor.numpy):
        other = {key: change(value) for key, value in theirs.items()}
        weights, _ = convert_state_dict({"state_dict": other}, **options)
        assert not any(value.requires_grad for value in weights.values())
        torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    name = "bbox_head.atss_cls.weight"
    weights, report = convert_state_dict({**theirs, name: theirs[name].half()}, **options)
    assert weights["head.cls_score.weight"].dtype == torch.float32
    (key,) = (key for key in report.keys if key.theirs == name)
    assert (key.status, key.note) == ("changed", "was float16")


# -------------------------------------------------------------------------------- whole models


def fpn(weights, c3_to_c5, names, *, relu):
    """P3 to P7 by a few lines of plain torch."""
    laterals, outputs, p6, p7 = names

    def conv(x, name, **options):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    inner = [conv(c, name) for c, name in zip(c3_to_c5, laterals, strict=True)]
    for i in (1, 0):
        inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
    pyramid = [conv(x, name, padding=1) for x, name in zip(inner, outputs, strict=True)]
    pyramid.append(conv(pyramid[-1], p6, stride=2, padding=1))
    last = pyramid[-1].relu() if relu else pyramid[-1]
    pyramid.append(conv(last, p7, stride=2, padding=1))
    return {f"p{i}": x for i, x in enumerate(pyramid, 3)}


def resnet_maps(resnet, image):
    """C3, C4 and C5 of a torchvision ResNet."""
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
    x = resnet.layer1(x)
    c3 = resnet.layer2(x)
    c4 = resnet.layer3(c3)
    return [c3, c4, resnet.layer4(c4)]


def load_resnet(weights, renamed, **options):
    """torchvision's network with weights under its own names."""
    resnet = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, **options
    ).eval()
    missing, unexpected = resnet.load_state_dict(
        {new: weights[old] for old, new in renamed.items()}, strict=False
    )
    assert unexpected == []
    assert {k for k in missing if not k.endswith("num_batches_tracked")} == {"fc.weight", "fc.bias"}
    return resnet


# Prefix of the backbone; laterals, outputs, P6 and P7 of the FPN; whether P7 sees a ReLU.
NAMES = {
    "authors": (
        *("backbone.body.", [f"backbone.fpn.fpn_inner{i}" for i in (2, 3, 4)]),
        *([f"backbone.fpn.fpn_layer{i}" for i in (2, 3, 4)], "backbone.fpn.top_blocks.p6"),
        *("backbone.fpn.top_blocks.p7", True),
    ),
    "mmdet": (
        *("backbone.", [f"neck.lateral_convs.{i}.conv" for i in range(3)]),
        *([f"neck.fpn_convs.{i}.conv" for i in range(3)], "neck.fpn_convs.3.conv"),
        *("neck.fpn_convs.4.conv", False),
    ),
}


@pytest.mark.parametrize(("convention", "groups"), [("mmdet", 1), ("authors", 1), ("authors", 32)])
def test_whole_models(convention, groups):
    """Of the authors, a ResNet has strides in 1x1, a ResNeXt in 3x3; norms have no epsilon."""
    options = {"groups": groups, "width": 8 if groups == 1 else 1}
    theirs, model = checkpoint(convention, **options), converted_model(convention, **options)
    prefix, *names_of_fpn, relu = NAMES[convention]
    renamed = {
        k: k.removeprefix(prefix).removeprefix("stem.") for k in theirs if k.startswith(prefix)
    }
    resnet = load_resnet(
        theirs, renamed, layers=foreign.R_50, groups=groups, width_per_group=options["width"]
    )
    for module in resnet.modules() if convention == "authors" else ():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0
        if isinstance(module, torchvision.models.resnet.Bottleneck) and groups == 1:
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = fpn(theirs, resnet_maps(resnet, image), names_of_fpn, relu=relu)
        found = model.backbone(image)
    assert expected["p3"].std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("convention", MAKERS)
def test_deformable_convolutions_of_backbone_and_towers(convention):
    theirs, model = checkpoint(convention, **DCN), converted_model(convention, **DCN)

    def deformable(x, offset, conv, stride=1, bias=None):
        prediction = F.conv2d(
            x, theirs[f"{offset}.weight"], theirs[f"{offset}.bias"], stride=stride, padding=1
        )
        offsets, mask = prediction[:, :18], prediction[:, 18:].sigmoid()
        weight = theirs[f"{conv}.weight"]
        return deform_conv2d(x, offsets, weight, bias, stride, padding=1, mask=mask)

    def norm(x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        eps = 0 if convention == "authors" else 1e-5
        return F.batch_norm(x, *(theirs[f"{name}.{part}"] for part in parts), eps=eps)

    # The first block of C3, which has a stride, and the second.
    x = torch.randn(1, 256, 12, 14)
    y = x
    room = "backbone.body.layer2" if convention == "authors" else "backbone.layer2"
    names = (
        ("conv2.offset", "conv2.conv")
        if convention == "authors"
        else ("conv2.conv_offset", "conv2")
    )
    for index in (0, 1):
        block = f"{room}.{index}"
        stride_1x1, stride_3x3 = (2, 1) if convention == "authors" else (1, 2)
        if index == 1:
            stride_1x1 = stride_3x3 = 1
        z = F.conv2d(y, theirs[f"{block}.conv1.weight"], stride=stride_1x1)
        z = norm(z, f"{block}.bn1").relu()
        z = deformable(z, *(f"{block}.{name}" for name in names), stride=stride_3x3)
        z = norm(z, f"{block}.bn2").relu()
        z = norm(F.conv2d(z, theirs[f"{block}.conv3.weight"]), f"{block}.bn3")
        if index == 0:
            y = F.conv2d(y, theirs[f"{block}.downsample.0.weight"], stride=2)
            y = norm(y, f"{block}.downsample.1")
        y = (z + y).relu()
    with torch.no_grad():
        ours = model.backbone.bottom_up.res3[:2](x)
    torch.testing.assert_close(ours, y, rtol=1e-4, atol=1e-4)

    # The last convolution of a tower.
    x = torch.randn(1, 64, 5, 6)
    if convention == "authors":
        conv = "rpn.head.bbox_tower.9"
        parts = (f"{conv}.offset", f"{conv}.conv")
        expected = deformable(x, *parts, bias=theirs[f"{conv}.conv.bias"])
    else:
        conv = "bbox_head.reg_convs.3.conv"
        expected = deformable(x, f"{conv}.conv_offset", conv)
    with torch.no_grad():
        torch.testing.assert_close(model.head.bbox_subnet[9](x), expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------- public numbers


class NoBackbone(Backbone):
    """Stands where the network would be that gives the published features."""

    def __init__(self):
        super().__init__()
        self._out_features = [f"p{i}" for i in range(3, 8)]
        self._out_feature_channels = dict.fromkeys(self._out_features, 32)
        self._out_feature_strides = {f"p{i}": 2**i for i in range(3, 8)}

    def forward(self, x):
        raise NotImplementedError


def published_model(variant):
    """A model under the convention of a variant, with its head weights."""
    convention = variant.partition(".")[0]
    cfg = get_config("coco/atss_R_50_FPN_1x").model
    cfg.backbone = L(NoBackbone)()
    cfg.num_classes = 5
    cfg.head.update(input_shape=[ShapeSpec(channels=32)] * 5, conv_dims=[32] * 4)
    if variant == "authors.atss_point":
        cfg.box2box_transform = L(PointDistances)()
    model = instantiate(apply_convention(cfg, convention))
    sources = {"authors.atss_point": ["authors.atss_box", "authors.atss_point"]}
    theirs = {
        key.removeprefix(f"{source}.sd."): value
        for source in sources.get(variant, [variant])
        for key, value in published.items()
        if key.startswith(f"{source}.sd.")
    }
    weights, report = convert_state_dict(theirs, convention, expected=model)
    assert report.architecture is None
    model.load_state_dict(weights)
    return model


def published_outputs(variant):
    """Maps of logits, regression and centerness of two images."""
    of_boxes = "authors.atss_box" if variant == "authors.atss_point" else variant
    return [
        [torch.from_numpy(published[f"{source}.{name}_{level}"]) for level in range(5)]
        for name, source in (("cls", of_boxes), ("reg", variant), ("ctr", of_boxes))
    ]


def feature_maps(num_images=1):
    return [
        torch.from_numpy(published[f"feat_{level}"]).expand(num_images, -1, -1, -1)
        for level in range(5)
    ]


VARIANTS = ("authors.atss_box", "authors.atss_point", "mmdet")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_head_computes_what_theirs_does(variant):
    with torch.no_grad():
        outputs = published_model(variant).head(feature_maps())
    for ours, theirs in zip(outputs, published_outputs(variant), strict=True):
        for x, y in zip(ours, theirs, strict=True):
            x = x.relu() if variant == "authors.atss_point" and x.shape[1] == 4 else x
            torch.testing.assert_close(x, y[:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("i", "from_features"), [(0, True), (0, False), (1, False)])
def test_detections_are_theirs(variant, i, from_features):
    model = published_model(variant)
    outputs = [[x[i : i + 1] for x in maps] for maps in published_outputs(variant)]
    if from_features:
        with torch.no_grad():
            outputs = model.head(feature_maps())
    width, height = published["sizes_wh"][i].tolist()
    images = ImageList(torch.zeros(1, 3, 288, 224), [(height, width)])
    (ours,) = model.forward_inference(images, feature_maps(), outputs)
    boxes, scores, classes = (
        torch.from_numpy(published[f"{variant}.det_{name}_{i}"])
        for name in ("boxes", "scores", "classes")
    )
    order = scores.argsort(descending=True, stable=True)  # theirs are not sorted
    assert len(ours) == 100
    torch.testing.assert_close(ours.scores, scores[order], rtol=0, atol=1e-5)
    assert torch.equal(ours.pred_classes, classes[order].long())
    torch.testing.assert_close(ours.pred_boxes.tensor, boxes[order], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("variant", "of_boxes"),
    [("authors.atss_box", 0.012), ("authors.atss_point", 0.01), ("mmdet", 1e-6)],
)
def test_losses_are_theirs(variant, of_boxes):
    """The authors' box loss only nearly: inside of the GIoU their boxes are smaller by a pixel."""
    model = published_model(variant)
    gt_instances = [
        Instances(
            (288, 224),
            gt_boxes=Boxes(torch.from_numpy(published[f"gt_boxes_{i}"]).float()),
            gt_classes=torch.from_numpy(published[f"gt_classes_{i}"]).long(),
        )
        for i in range(2)
    ]
    predictions = published_outputs(variant)
    losses = model.forward_training(None, feature_maps(2), predictions, gt_instances)
    names = {"loss_cls": "loss_cls", "loss_centerness": "loss_centerness"}
    names["loss_box_reg"] = "loss_bbox" if variant == "mmdet" else "loss_reg"
    for ours, theirs in names.items():
        tolerance = of_boxes if ours == "loss_box_reg" else 1e-6
        assert losses[ours].item() == pytest.approx(
            published[f"{variant}.{theirs}"].item(), tolerance
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_convention_of_the_other_would_not_do(variant):
    """What the conventions switch is seen in the published numbers."""
    model = published_model(variant)
    other = published_model("mmdet" if variant != "mmdet" else "authors.atss_box")
    images = ImageList(torch.zeros(2, 3, 288, 224), [(288, 224)] * 2)
    outputs = published_outputs(variant)
    for x, y in zip(
        model.forward_inference(images, feature_maps(2), outputs),
        other.forward_inference(images, feature_maps(2), outputs),
        strict=True,
    ):
        assert (x.pred_boxes.tensor - y.pred_boxes.tensor).abs().max() > 0.4
        assert (x.scores - y.scores).abs().max() > 0.01


# ------------------------------------------------------------------------------------ refusals


def refused(state_dict, convention="auto", **options):
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(state_dict, convention, **options)
    return caught.value


PREDICTORS = (("atss_cls", 27), ("atss_reg", 36), ("atss_centerness", 9))
NINE_ANCHORS = {
    f"bbox_head.{name}.{part}": torch.zeros(channels, *shape)
    for name, channels in PREDICTORS
    for part, shape in (("weight", (256, 3, 3)), ("bias", ()))
}


@pytest.mark.parametrize(
    ("convention", "removed", "added", "message"),
    [
        (
            *("mmdet", "backbone.layer3.4.bn2.bias", {}),
            "1 of the model not in the file: backbone.bottom_up.res4.4.conv2.norm.bias 256",
        ),
        (
            *("mmdet", None, {f"bbox_head.extra_{i}.weight": torch.zeros(3) for i in range(9)}),
            "9 of the file not in the model: bbox_head.extra_0.weight 3, .* and 4 more",
        ),
        (
            *("authors", None, {"rpn.head.cls_logits.bias": torch.zeros(4)}),
            r"1 of other shapes: rpn.head.cls_logits.bias 4 \(head.cls_score.bias is 80\)",
        ),
        (
            *("authors", None, {"backbone.body.layer1.0.conv2.conv.weight": torch.zeros(64, 64)}),
            r"layer1.0.conv2.conv.weight 64x64 \(backbone.bottom_up.res2.0.* a second time",
        ),
        ("mmdet", None, NINE_ANCHORS, "boxes of 9 anchors per location"),
        ("mmdet", "layer3.5.", {}, r"with \[3, 4, 5, 3\] bottleneck blocks .* is none of depth"),
        ("mmdet", "neck.", {}, "backbone.fpn_output3.weight is not there"),
        (
            *("mmdet", None, {"bbox_head.atss_reg.weight": torch.zeros(4)}),
            r"head.bbox_pred.weight has shape \(4,\)",
        ),
    ],
)
def test_files_of_other_models_are_refused(convention, removed, added, message):
    theirs = MAKERS[convention](device="meta")
    theirs = {k: v for k, v in theirs.items() if removed is None or removed not in k}
    error = refused({**theirs, **added})
    assert re.search(message, str(error))
    assert "extra_5" not in str(error)
    if removed and removed.endswith("bias"):
        assert isinstance(error, ConversionError)
        (key,) = (key for key in error.report.keys if key.status == "missing")
        assert key.ours == "backbone.bottom_up.res4.4.conv2.norm.bias"


@pytest.mark.parametrize("convention", MAKERS)
def test_a_file_of_the_other_implementation_is_refused(convention):
    other = "mmdet" if convention == "authors" else "authors"
    theirs = MAKERS[convention](device="meta")
    error = refused(theirs, other)
    assert f"do not fit the convention '{other}'" in str(error)
    assert next(iter(theirs)) in str(error)


def test_a_model_that_cannot_be_built_is_refused():
    # 40 channels are no multiple of the 32 groups of a GroupNorm.
    assert "which cannot be built" in str(refused(foreign.mmdet(channels=40, device="meta")))


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, "there are no weights in this file.*it has nothing"),
        ({"epoch": 3, "optimizer": {}}, "neither at its top nor under model or state_dict; it has"),
        ({"model": {}}, "there are no weights"),
        ({"fc.weight": torch.zeros(3)}, "neither the names of the authors' release.*: fc.weight"),
        (
            {"model": {"head.cls_subnet.0.weight": torch.zeros(3)}},
            "have Detectron2's names already: load them as they are",
        ),
    ],
)
def test_what_is_no_foreign_checkpoint_says_what_it_is(checkpoint, message):
    with pytest.raises(CheckpointError, match=message):
        convert_state_dict(checkpoint)


def test_an_unknown_convention_names_the_known_ones():
    with pytest.raises(ValueError, match="convention must be one of authors, mmdet, got 'cvpods'"):
        convert_state_dict(foreign.mmdet(device="meta"), "cvpods")


def test_a_model_to_convert_for_is_what_counts():
    theirs = foreign.authors(device="meta")
    _, report = convert_state_dict(theirs)
    with torch.device("meta"):
        model = build(report)
        other = copy.deepcopy(model)
        other.head.cls_score = torch.nn.Conv2d(256, 7, 3)
    assert convert_state_dict(theirs, expected=model).state_dict.keys() == model.state_dict().keys()
    assert convert_state_dict(theirs, expected=model.state_dict()).report.architecture is None
    message = str(refused(theirs, expected=other))
    assert "2 of other shapes" in message
    assert "head.cls_score.bias is 7" in message


# -------------------------------------------------------------------------------------- report


def test_the_report_speaks():
    _, report = convert_state_dict(foreign.authors(device="meta", num_classes=3))
    assert str(report) == (
        "324 of the 324 keys of the model found in a file of the authors' release: 266 renamed, "
        "58 changed as well; 0 missing; 5 left (computed anew)"
    )
    lines = report.key_table().splitlines()
    assert len(lines) == 2 + len(report.keys) == 2 + 329
    row = next(line for line in lines if "rpn.head.scales.0.scale" in line)
    assert row.split() == [
        *("changed", "rpn.head.scales.0.scale", "head.scales.0.scale", "1", "now", "0-dimensional")
    ]
    assert len(report.key_table(["left"]).splitlines()) == 2 + 5
    assert "model.num_classes" in report.config_table()
    assert all(isinstance(value, str) for value in report.metadata().values())


@pytest.mark.parametrize("convention", MAKERS)
def test_the_overrides_make_the_config(convention):
    """As the command line takes them."""
    _, report = convert_state_dict(MAKERS[convention](device="meta", num_classes=3))
    cfg = apply_overrides(get_config(report.architecture.config), report.overrides)
    assert len(report.changes) >= 5
    for key, value, needed in report.changes:
        assert config_value(cfg.model, key) == needed != value
    other = report.architecture.config_with(convention)
    assert apply_convention(cfg, convention).model.keys() == other.model.keys()
    assert Architecture(report.architecture.config).changes(convention) == report.changes[1:]
