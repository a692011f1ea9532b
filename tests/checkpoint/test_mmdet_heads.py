"""Checkpoints of mmdetection's other detectors and of its DyHead: names, settings, results."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from torchvision.ops import deform_conv2d

from atss_d2 import Predictor, get_config
from atss_d2.checkpoint import (
    CheckpointError,
    apply_convention,
    convention_differences,
    convert_state_dict,
)
from atss_d2.checkpoint.mmdet_heads import MMDET_HEADS
from atss_d2.commands import convert_weights
from atss_d2.engine import load_weights
from tests import foreign_checkpoints as foreign
from tests import reference
from tests.checkpoint.test_conversion import NoBackbone, build, fpn, load_resnet, resnet_maps

published = reference.published_quality()
# Detector -> its published maps, in the order of our head's.
HEADS_WITH_NUMBERS = {
    "gfl": ("gfl.cls", "gfl.reg"),
    "paa": ("paa.cls", "paa.reg", "paa.iou"),
    "ddod": ("ddod.cls", "ddod.reg", "ddod.iou"),
}
# Its "simple" model has 3x3 predictors, the one that follows the authors 1x1.
DYHEAD = {"dyhead_blocks": 6, "tower_length": 0}
DDOD = {"predictors": [("atss_reg", 4), ("atss_iou", 1)], "dcn_first_in_tower": True}
GFL = {"class_predictor": "gfl_cls", "predictors": [("gfl_reg", 68)]}
TOOD = {"class_predictor": "tood_cls", "predictors": [("tood_reg", 4)], "tower_length": 0}
# Options of the checkpoint, its detector, its config, and the settings in which it differs.
MODELS = {
    "dyhead 1x1": (
        {**DYHEAD, "predictor_side": 1},
        *("atss", "coco/atss_dyhead_R_50_FPN_1x", {}),
    ),
    "dyhead R-101": (
        {**DYHEAD, "blocks": foreign.R_101, "dyhead_blocks": 2, "channels": 64},
        *("atss", "coco/atss_dyhead_R_50_FPN_1x"),
        {
            "backbone.backbone.bottom_up.stages.depth": 101,
            "backbone.backbone.out_channels": 64,
            "backbone.num_blocks": 2,
            "backbone.channels": 64,
            "head.pred_kernel_size": 3,
            **{f"head.input_shape.{level}.channels": 64 for level in range(5)},
        },
    ),
    "ddod": (DDOD, "ddod", "coco/ddod_R_50_FPN_1x", {}),
    "ddod without deformable convolution": (
        {**DDOD, "dcn_first_in_tower": False},
        *("ddod", "coco/ddod_R_50_FPN_1x", {"head.deform_first_conv": False}),
    ),
    "gfl": (GFL, "gfl", "coco/gfl_R_50_FPN_1x", {}),
    "paa": ({}, "paa", "coco/paa_R_50_FPN_1x", {}),  # its names are those of ATSS
    "tood": ({**TOOD, "shared_convs": 6}, "tood", "coco/tood_R_50_FPN_1x", {}),
    "tood, 4 layers": (
        {**TOOD, "shared_convs": 4},
        *("tood", "coco/tood_R_50_FPN_1x", {"head.conv_dims": [256] * 4}),
    ),
    "gfl, 9 bins": (
        {**GFL, "predictors": [("gfl_reg", 36)], "num_classes": 7, "dcn_in_tower": True},
        *("gfl", "coco/gfl_R_50_FPN_1x"),
        {
            "num_classes": 7,
            "head.deform_last_conv": True,
            "box2box_transform.num_bins": 9,
            "head.num_box_values": 36,
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_key_finds_its_place(name):
    options, detector, config, settings = MODELS[name]
    theirs = foreign.mmdet(**options, device="meta")
    if detector == "gfl":
        theirs["bbox_head.integral.project"] = torch.empty(17, device="meta")
    # All others are recognized.
    asked_for = "paa" if detector == "paa" else "auto"
    weights, report = convert_state_dict(theirs, detector=asked_for)
    architecture = report.architecture
    assert (architecture.detector, architecture.config) == (detector, config)
    assert architecture.settings == settings
    with torch.device("meta"):
        model = build(report)
    expected = {k: v.shape for k, v in model.state_dict().items()}
    expected.pop("criterion.num_positives", None)  # DDOD's, which start at zero
    assert expected == {k: v.shape for k, v in weights.items()}
    assert report.count("missing", "unexpected", "misshapen") == 0
    # Of all models, only this one does not follow mmdetection's own convention.
    assert ("needs model.backbone.size_divisibility=128" in str(report)) == (name == "dyhead 1x1")


@pytest.mark.parametrize("detector", MMDET_HEADS)
def test_every_detector_has_its_configs(detector):
    head = MMDET_HEADS[detector]
    for name in (head.config, head.config_with_dyhead):
        if name is not None:
            assert apply_convention(get_config(name), "mmdet").model.input_format == "RGB"
    assert ("auto", *MMDET_HEADS) == convert_weights._DETECTORS


# ---------------------------------------------------------------------------- public numbers


def published_model(detector):
    """A model of the convention with the published weights of a head."""
    cfg = get_config(MMDET_HEADS[detector].config).model
    cfg.backbone = L(NoBackbone)()
    cfg.num_classes = 5
    cfg.head.update(input_shape=[ShapeSpec(channels=32)] * 5, conv_dims=[32] * 4)
    model = instantiate(apply_convention(cfg, "mmdet"))
    prefix = f"{detector}.sd."
    theirs = {k.removeprefix(prefix): x for k, x in published.items() if k.startswith(prefix)}
    weights, _ = convert_state_dict(theirs, "mmdet", detector=detector, expected=model)
    state = {k: x for k, x in model.state_dict().items() if k.startswith("criterion.")}
    model.load_state_dict({**weights, **state})
    return model.eval()


def maps(*names):
    """Lists of L maps of both images."""
    return [[torch.from_numpy(published[f"{name}_{i}"]) for i in range(5)] for name in names]


@torch.no_grad()
@pytest.mark.parametrize("detector", HEADS_WITH_NUMBERS)
def test_heads_compute_what_theirs_do(detector):
    model, features = published_model(detector), maps("feat")[0]
    outputs = model.head(features)
    for found, expected in zip(outputs, maps(*HEADS_WITH_NUMBERS[detector]), strict=True):
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-4)
    images = ImageList(
        torch.zeros(2, 3, 288, 224), [(int(h), int(w)) for w, h in published["sizes_wh"]]
    )
    for i, instances in enumerate(model.forward_inference(images, features, outputs)):
        boxes, scores, classes = (
            torch.from_numpy(published[f"{detector}.det_{name}_{i}"])
            for name in ("boxes", "scores", "classes")
        )
        assert len(instances) == len(boxes) == 100
        # Scores may be closer than the last bits of a sum: matched as sets.
        likeness = pairwise_iou(Boxes(boxes), instances.pred_boxes)
        likeness -= 10 * (scores[:, None] - instances.scores).abs()
        likeness[classes.long()[:, None] != instances.pred_classes] = -99
        partners = likeness.argmax(dim=1)
        assert sorted(partners.tolist()) == list(range(100))
        found = instances[partners]
        torch.testing.assert_close(found.pred_boxes.tensor, boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(found.scores, scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("detector", HEADS_WITH_NUMBERS)
@pytest.mark.parametrize("boxes_in", [(True, True), (False, True), (False, False)])
def test_losses_are_theirs(detector, boxes_in):
    """With boxes in both images, in the second only, and in none."""
    model, features = published_model(detector), maps("feat")[0]
    instances = []
    for i, has_boxes in enumerate(boxes_in):
        gt = Instances((288, 224))
        gt.gt_boxes = Boxes(torch.from_numpy(published[f"gt_boxes_{i}"]).float())
        gt.gt_classes = torch.from_numpy(published[f"gt_classes_{i}"]).long()
        instances.append(gt if has_boxes else gt[:0])
    maps_of_head = model.head(features)
    if not any(boxes_in):  # in float32, the sum over 13,490 small terms is rounded by 1e-5
        maps_of_head = [[x.double() for x in level_maps] for level_maps in maps_of_head]
    losses = model.train().forward_training(None, features, maps_of_head, instances)
    case = {(True, True): "", (False, True): "empty0.", (False, False): "empty."}[boxes_in]
    for ours, found in losses.items():
        theirs = {"loss_box_reg": "loss_bbox"}.get(ours, ours)
        expected = published[f"{detector}.{case}{theirs}"].item()
        assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-7), ours


# ------------------------------------------------------------------------------------ DyHead


SMALL = {**DYHEAD, "dyhead_blocks": 2, "num_classes": 3, "channels": 64, "width": 8}


def block_of_mmdetection(weights, name, maps):
    """What a DyHead block makes of maps, with the operator's reading of the upper level."""

    def conv(x, part, **options):
        return F.conv2d(x, weights[f"{part}.weight"], weights[f"{part}.bias"], **options)

    def deformable(x, part, offset, mask, stride=1):
        part = f"{name}.spatial_conv_{part}"
        x = deform_conv2d(
            x, offset, weights[f"{part}.conv.weight"], stride=stride, padding=1, mask=mask
        )
        return F.group_norm(x, 16, weights[f"{part}.norm.weight"], weights[f"{part}.norm.bias"])

    def read(x, h, w):
        return torch.stack([image.flatten()[: len(image) * h * w].view(-1, h, w) for image in x])

    outputs = []
    for level, x in enumerate(maps):
        prediction = conv(x, f"{name}.spatial_conv_offset", padding=1)
        offset, mask = prediction[:, :18], prediction[:, 18:].sigmoid()
        parts = [deformable(x, "mid", offset, mask)]
        if level > 0:
            parts.append(deformable(maps[level - 1], "low", offset, mask, 2))
        if level < len(maps) - 1:
            upper = maps[level + 1]
            size = upper.shape[-2:]
            y = deformable(upper, "high", read(offset, *size), read(mask, *size))
            y = F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=True)
            parts.append(y)
        for i, part in enumerate(parts):
            weight = conv(part.mean((2, 3), keepdim=True), f"{name}.scale_attn_module.1").relu()
            parts[i] = part * ((weight + 3).clamp(0, 6) / 6)
        y = sum(parts) / len(parts)
        z = conv(y.mean((2, 3), keepdim=True), f"{name}.task_attn_module.conv1.conv").relu()
        z = (conv(z, f"{name}.task_attn_module.conv2.conv") + 3).clamp(0, 6) / 6 - 0.5
        a1, b1, a2, b2 = z.split(y.shape[1], dim=1)
        outputs.append(torch.maximum((2 * a1 + 1) * y + b1, 2 * a2 * y + b2))
    return outputs


@torch.no_grad()
def test_a_whole_model_with_dyhead():
    theirs = foreign.mmdet(**SMALL)
    weights, report = convert_state_dict({"state_dict": theirs})
    model = build(report)
    model.load_state_dict(weights)
    renamed = {k: k.removeprefix("backbone.") for k in theirs if k.startswith("backbone.")}
    resnet = load_resnet(theirs, renamed, layers=foreign.R_50, width_per_group=8)
    image = torch.randn(2, 3, 64, 96)
    names = (
        [f"neck.0.lateral_convs.{i}.conv" for i in range(3)],
        [f"neck.0.fpn_convs.{i}.conv" for i in range(3)],
        *("neck.0.fpn_convs.3.conv", "neck.0.fpn_convs.4.conv"),
    )
    maps = list(fpn(theirs, resnet_maps(resnet, image), names, relu=False).values())
    for index in range(2):
        maps = block_of_mmdetection(theirs, f"neck.1.dyhead_blocks.{index}", maps)
    found = model.backbone(image)
    for level, expected in enumerate(maps, 3):
        assert expected.std() > 0.1
        torch.testing.assert_close(found[f"p{level}"], expected, rtol=1e-4, atol=1e-4)
    logits, deltas, centerness = model.head(list(found.values()))
    scale = theirs["bbox_head.scales.1.scale"]
    for maps_of_level, name, factor in (
        *((logits, "atss_cls", 1), (deltas, "atss_reg", scale)),
        (centerness, "atss_centerness", 1),
    ):
        weight, bias = (theirs[f"bbox_head.{name}.{x}"] for x in ("weight", "bias"))
        expected = F.conv2d(maps[1], weight, bias, padding=1) * factor
        torch.testing.assert_close(maps_of_level[1], expected, rtol=1e-4, atol=1e-4)


def test_the_tool_writes_weights_and_config(tmp_path, capsys, caplog):
    """Loaded with the config beside them, or directly into a model of the convention."""
    torch.save({"state_dict": foreign.mmdet(**SMALL)}, tmp_path / "theirs.pth")
    output = tmp_path / "ours.pth"
    assert convert_weights.main([str(tmp_path / "theirs.pth"), str(output), "--quiet"]) == 0
    printed = capsys.readouterr().out
    for line in ("model.backbone.offsets_of_upper_level", "model.backbone.backbone.p7_relu"):
        assert line in printed
    cfg = LazyConfig.load(str(output.with_suffix(".py")))
    assert cfg.model.backbone.offsets_of_upper_level == "flattened"
    smaller = "dataloader.test.mapper.augmentations.0.short_edge_length=96"
    predictor = Predictor(output.with_suffix(".py"), device="cpu", overrides=[smaller])
    assert predictor.model.backbone.size_divisibility == 32
    assert convention_differences(predictor.model, "mmdet") == []
    image = torch.randint(0, 255, (90, 120, 3), dtype=torch.uint8).numpy()
    assert len(predictor(image)) > 0
    model = instantiate(cfg.model)
    load_weights(model, f"mmdet://{tmp_path / 'theirs.pth'}")
    torch.testing.assert_close(
        dict(model.state_dict()), dict(predictor.model.state_dict()), rtol=0, atol=0
    )
    assert "results will not be" not in caplog.text
    cfg.model.backbone.offsets_of_upper_level = "resize"
    load_weights(instantiate(cfg.model), f"mmdet://{tmp_path / 'theirs.pth'}")
    assert "backbone.offsets_of_upper_level is resize, not flattened" in caplog.text


def test_files_of_other_models_are_refused():
    theirs = foreign.mmdet(**SMALL, device="meta")
    del theirs["neck.1.dyhead_blocks.1.spatial_conv_low.norm.bias"]
    with pytest.raises(CheckpointError, match=r"not in the file: backbone.blocks.1.lower.norm.bia"):
        convert_state_dict(theirs)
    with pytest.raises(ValueError, match="detector must be one of atss, .*, got 'fcos'"):
        convert_state_dict(theirs, detector="fcos")
    with pytest.raises(ValueError, match="the convention of GFL is 'mmdet', got 'authors'"):
        convert_state_dict(theirs, "authors", detector="gfl")
