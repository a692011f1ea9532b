"""``use_atss`` and ``use_matcher`` on the nodes of LazyConfigs."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.proposal_generator import RPN
from omegaconf import OmegaConf

import atss_d2
from atss_d2 import ATSSMatcher, CenterSamplingMatcher, IoUMatcher, use_atss, use_matcher
from atss_d2.engine import apply_overrides
from tests import detectron2_models as d2
from tests import rcnn_models
from tests.toy import CHANNELS

CLASSES = {"retinanet": RetinaNet, "fcos": FCOS}


def zoo(name):
    """A config of Detectron2's model zoo with the toy backbone."""
    cfg = d2.zoo_config(name)
    cfg.model.backbone = L(d2.backbone)()
    cfg.model.head.update(
        input_shape=[ShapeSpec(channels=CHANNELS)] * len(d2.STRIDES), conv_dims=[CHANNELS]
    )
    cfg.model.head_in_features = ["p3", "p4"]
    if name == "retinanet":
        sizes = cfg.model.anchor_generator.sizes[: len(d2.STRIDES)]
        cfg.model.anchor_generator.update(sizes=sizes, strides=list(d2.STRIDES))
    return cfg


class MyRetinaNet(RetinaNet):
    """A user's class with an argument of its own."""

    def __init__(self, *, temperature, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature


@pytest.mark.parametrize("name", CLASSES)
def test_overrides_interpolations_saving(name, tmp_path):
    cfg = zoo(name)
    cfg.train.K = "${..model.num_classes}"
    keys = set(cfg.model)
    assert use_atss(cfg.model, topk=5, min_positives=1) is cfg.model
    assert keys < set(cfg.model)
    LazyConfig.apply_overrides(
        cfg, ["model.num_classes=3", "model.matcher.topk=13", "model.test_nms_thresh=0.4"]
    )
    assert cfg.train.K == 3

    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert not (tmp_path / "config.yaml.pkl").exists()
    for config in (cfg, LazyConfig.load(str(tmp_path / "config.yaml"))):
        model = instantiate(config.model)
        assert type(model) is CLASSES[name]
        assert model.num_classes == model.label_anchors.num_classes == 3
        assert model.test_nms_thresh == 0.4
        matcher = model.label_anchors.matcher
        assert type(matcher) is ATSSMatcher
        assert (matcher.topk, matcher.min_positives) == (13, 1)
        assert matcher.num_anchors == {"retinanet": 9, "fcos": 1}[name]
        assert all(loss.isfinite() for loss in d2.losses_of(model).values())


@pytest.mark.parametrize("name", CLASSES)
def test_the_built_model_equals_a_changed_one(name):
    cfg = zoo(name)
    cfg.model.num_classes = d2.NUM_CLASSES
    expected = use_atss(instantiate(cfg.model))
    model = instantiate(use_atss(cfg.model))
    model.load_state_dict(expected.state_dict(), strict=True)
    torch.testing.assert_close(d2.losses_of(model), d2.losses_of(expected), rtol=0, atol=0)


@pytest.mark.parametrize("name", CLASSES)
def test_undoing(name):
    cfg, changed = d2.zoo_config(name), d2.zoo_config(name)
    use_matcher(use_atss(changed.model, anchor_scale=5), IoUMatcher)
    use_matcher(changed.model, None)
    assert changed == cfg
    use_matcher(changed.model, None)  # nothing to undo
    assert changed == cfg


def test_a_node_of_a_matcher():
    node = L(CenterSamplingMatcher)(radius=2.5)
    cfg = zoo("retinanet")
    use_matcher(cfg.model, node)
    matcher = instantiate(cfg.model).label_anchors.matcher
    assert (type(matcher), matcher.radius, matcher.strides) == (CenterSamplingMatcher, 2.5, (8, 16))
    assert "strides" not in node


def test_the_node_of_an_rpn():
    node = rcnn_models.rcnn_config()
    assert use_atss(node.proposal_generator, topk=5) is node.proposal_generator
    rpn = instantiate(node).proposal_generator
    assert type(rpn) is RPN
    matcher = rpn.label_and_sample_anchors.args[1]
    assert (type(matcher), matcher.topk, matcher.num_anchors) == (ATSSMatcher, 5, 3)
    assert (
        use_matcher(node.proposal_generator, None) == rcnn_models.rcnn_config().proposal_generator
    )
    with pytest.raises(TypeError, match="ATSSRPN has a matcher of its own: set the key anchor_m"):
        use_atss(rcnn_models.with_atss(node).proposal_generator)


def test_a_second_call_replaces_the_first():
    cfg = zoo("fcos")
    use_atss(cfg.model, anchor_scale=5)
    assert instantiate(cfg.model).label_anchors.sides == [40, 80]
    use_matcher(cfg.model, IoUMatcher, thresholds=[0.3, 0.6])
    label_anchors = instantiate(cfg.model).label_anchors
    assert label_anchors.sides == [64, 128]
    assert label_anchors.matcher.thresholds == (0.3, 0.6)
    cfg.model.anchor_scale = 6
    assert instantiate(cfg.model).label_anchors.sides == [48, 96]


@pytest.mark.parametrize("target", [MyRetinaNet, f"{__name__}.MyRetinaNet"])
def test_classes_of_ones_own(target):
    cfg = zoo("retinanet")
    cfg.model._target_ = target
    cfg.model.temperature = 2.0
    model = instantiate(use_atss(cfg.model))
    assert type(model).__name__ == "MyRetinaNet"
    assert model.temperature == 2.0
    assert model.label_anchors.matcher.num_anchors == 9
    assert use_matcher(cfg.model, None)._target_ == target


def test_our_command_line_knows_the_arguments_of_the_model():
    """An argument that the config leaves to its default can be set, a misspelled one cannot."""
    cfg = zoo("retinanet")
    use_atss(cfg.model)
    apply_overrides(
        cfg, ["model.test_score_thresh=0.3", "model.matcher.std_factor=0.5", "model.num_classes=7"]
    )
    model = instantiate(cfg.model)
    assert (model.test_score_thresh, model.num_classes) == (0.3, 7)
    assert model.label_anchors.matcher.std_factor == 0.5
    with pytest.raises(KeyError, match=r"did you mean model\.test_score_thresh"):
        apply_overrides(cfg, ["model.test_score_tresh=0.3"])
    with pytest.raises(KeyError, match=r"did you mean model\.matcher\.topk"):
        apply_overrides(cfg, ["model.matcher.top=3"])


@pytest.mark.parametrize(
    ("node", "matcher", "message"),
    [
        (L(GeneralizedRCNN)(), ATSSMatcher, "got GeneralizedRCNN, which has no label_anchors"),
        (L(GeneralizedRCNN)(proposal_generator=None), ATSSMatcher, "which has no label_anchors"),
        (OmegaConf.create({"model": {}}), ATSSMatcher, "without _target_, with the keys model"),
        (L(RetinaNet)(), ATSSMatcher(), r"got a built ATSSMatcher: .* LazyCall\(ATSSMatcher\)"),
        (L(RetinaNet)(), RetinaNet, "must be a DenseMatcher, got the class RetinaNet"),
        (
            atss_d2.get_config("coco/atss_R_50_FPN_1x").model,
            ATSSMatcher,
            "ATSS has a matcher of its own: set the key matcher",
        ),
    ],
)
def test_errors(node, matcher, message):
    before = node.copy()
    with pytest.raises(TypeError, match=message):
        use_matcher(node, matcher)
    assert node == before
