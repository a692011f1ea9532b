"""Detectron2's own ways to TorchScript, on images of other sizes than the sample."""

import copy
import io
import sys

import pytest
import torch
from detectron2.config import instantiate
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.structures import Boxes
from torch import nn

import atss_d2
from atss_d2.modeling import TorchvisionBackbone, postprocess, scripting
from atss_d2.modeling.box_coding import PointDistances
from atss_d2.modeling.pre_nms import select_fixed_number
from tests.detector import build, image, toy_head

FIELDS = {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor}
SIZES = [(64, 96), (65, 97), (130, 71), (16, 200), (1, 1)]


def inputs(*sizes):
    return [{"image": image(size=size, seed=i)["image"]} for i, size in enumerate(sizes)]


@torch.no_grad()
def eager(model, batch):
    """Detections as a scripted model gives them: before Detectron2 removes those of no area."""
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    features = [features[name] for name in model.head_in_features]
    return model.forward_inference(images, features, model.head(features))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)
        torch.testing.assert_close(ours.scores, theirs.scores)
        assert ours.pred_classes.tolist() == theirs.pred_classes.tolist()


PLAIN_HEAD = {"with_centerness": False, "with_scales": False}
MODELS = {
    "nine anchors": {"num_anchors": 9},
    "from a point": {"box2box_transform": PointDistances(anchor_scale=4)},
    "product, by class score": {"test_score_type": "product", "test_rank_by": "class_score"},
    "threshold on the score, voting": {"test_thresh_on": "score", "score_voting": 0.5},
    "neither centerness nor scales": {"head": PLAIN_HEAD},
    "deformable": {"head": {"deform_last_conv": True}},
    "no detection": {"test_score_thresh": 0.999},
    # Levels of small images have fewer pairs than so many, the sample more.
    "selection of a GPU": {"test_topk_candidates": 10},
}


def build_model(*, head=None, **options):
    """A model, whose head has other options than the toy's."""
    return build(**options, **({"head": toy_head(**head)} if head else {})).eval()


@pytest.mark.parametrize("name", MODELS)
def test_scripted_models_detect_the_same(name, monkeypatch):
    if name == "selection of a GPU":
        monkeypatch.setattr(postprocess, "select_pre_nms", select_fixed_number)
    model = build_model(**MODELS[name])
    for parameter_name, parameter in model.named_parameters():
        if "offset" in parameter_name:  # offsets that are not zero
            nn.init.normal_(parameter, std=0.02)
    names = list(model.state_dict())
    scripted = scripting_with_instances(copy.deepcopy(model), FIELDS)
    counts = set()
    for size in SIZES:
        batch = inputs(size, (40, 40))
        found = scripted(batch)
        assert_same(found, eager(model, batch))
        counts.update(len(x.scores) for x in found)
    assert (max(counts) > 10) == (name != "no detection")
    assert names == list(model.state_dict())


@pytest.mark.parametrize("name", ["demo/atss_mobilenetv2_trees", "coco/atss_dcnv2_R_50_FPN_1x"])
def test_models_of_configs_are_scripted(name):
    """LazyConfig leaves omegaconf's lists in them; deformable convolutions, torchvision."""
    cfg = atss_d2.get_config(name)
    cfg.model.pixel_std = [57.0, 57.0, 57.0]
    if "R_50" in name:
        cfg.model.backbone.bottom_up.stem.out_channels = 8
        cfg.model.backbone.bottom_up.stages.update(
            stem_out_channels=8, res2_out_channels=16, width_per_group=4
        )
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    nn.init.normal_(model.head.cls_score.weight, std=0.3)
    scripted = scripting_with_instances(copy.deepcopy(model), FIELDS)
    for size in [(64, 96), (129, 97)]:
        (expected,) = eager(model, inputs(size))
        assert len(expected) > 0
        assert_same(scripted(inputs(size)), [expected])


class InsideAnotherModule(nn.Module):
    """As Detectron2's tools/deploy/export_model.py wraps what it scripts."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        instances = self.model(inputs)
        return [x.get_fields() for x in instances]


def test_models_are_scripted_inside_of_other_modules():
    """With fields, besides ours, that only other detectors have; saved and loaded."""
    model = build().eval()
    fields = {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor, **FIELDS}
    scripted = scripting_with_instances(InsideAnotherModule(copy.deepcopy(model)).eval(), fields)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    (found,) = torch.jit.load(file)((inputs((70, 50))[0],))
    (expected,) = eager(model, inputs((70, 50)))
    assert set(found) == set(FIELDS)
    torch.testing.assert_close(found["pred_boxes"], expected.pred_boxes.tensor)
    torch.testing.assert_close(found["scores"], expected.scores)


def test_torchvision_backbones_are_scripted():
    """Swin's maps have their channels last."""
    backbone = TorchvisionBackbone(name="swin_t").eval()
    scripted = torch.jit.script(copy.deepcopy(backbone))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = scripted(images), backbone(images)
    assert list(found) == ["res3", "res4", "res5"]
    torch.testing.assert_close(found, expected)
    assert set(scripted.state_dict()) == set(backbone.state_dict())


def test_two_models_are_scripted_one_after_the_other():
    first, second = build().eval(), build(num_classes=5, seed=1).eval()
    scripted = [scripting_with_instances(copy.deepcopy(m), FIELDS) for m in (first, second)]
    for model, script in zip((first, second), scripted):
        assert_same(script(inputs((70, 50))), eager(model, inputs((70, 50))))


def test_models_in_training_are_refused():
    with pytest.raises(RuntimeError, match=r"call model\.eval\(\)"):
        torch.jit.script(build())


def test_new_pythons_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    with pytest.raises(RuntimeError, match=r"Python 3\.14: script with Python 3\.13 or older, or"):
        scripting.check_scriptable(build().eval())


@pytest.mark.parametrize(
    "options",
    [
        {"test_score_thresh": 0.999},
        {"test_topk_candidates": 20, "head": PLAIN_HEAD},  # more and fewer occur below
        {**MODELS["from a point"], "head": {"bbox_pred_bias": 2.0}},
    ],
    ids=["no detection", "neither centerness nor scales", "from a point"],
)
def test_traced_models_detect_the_same(options):
    """Also if the sample had no detection, or other images have none."""
    model = build_model(**options)
    sample = inputs((64, 96))
    adapter = TracingAdapter(model, sample)
    with scripting.without_jit_warnings():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    for size in SIZES:
        for pixels in (inputs(size)[0]["image"], torch.full((3, *size), 128, dtype=torch.uint8)):
            with torch.no_grad():
                (expected,) = model([{"image": pixels}])
                (found,) = adapter.outputs_schema(traced(pixels))
            assert_same([found["instances"]], [expected["instances"]])


def test_models_are_traced_with_two_images():
    """Of different sizes and numbers of candidates, in either order."""
    model = build(test_topk_candidates=50).eval()
    adapter = TracingAdapter(model, inputs((64, 96), (40, 40)))
    with scripting.without_jit_warnings():
        traced = torch.jit.trace(adapter, adapter.flattened_inputs)
    counts = set()
    for sizes in zip(SIZES, SIZES[1:] + SIZES[:1]):
        batch = inputs(*sizes)
        with torch.no_grad():
            expected = [x["instances"] for x in model(batch)]
            found = adapter.outputs_schema(traced(*(x["image"] for x in batch)))
        assert_same([x["instances"] for x in found], expected)
        counts.update(len(x) for x in expected)
    assert len(counts) > 3
