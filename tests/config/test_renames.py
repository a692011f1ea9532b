"""Configs, overrides and code of earlier versions: they work, or the message says the new name."""

import json
import logging
from pathlib import Path

import pytest
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform

from atss_d2.config import ConfigError, get_cfg, get_config, load_config
from atss_d2.config import renames as config_renames
from atss_d2.engine import apply_overrides, apply_yaml_overrides
from atss_d2.modeling import ATSSMatcher, IoUMatcher
from atss_d2.modeling.box_coding import PointDistances, TwoSidedBox2BoxTransform
from tests.detector import BOXES, image

# config.yaml of two runs of train_net.py, and the weights of their model_final.pth without the
# backbone's: of a LazyConfig, the demo's shapes with
#   model.matcher.ignore_iof_thresh=0.5 model.box2box_transform.clamp_both_sides=True
# and of a yaml config, a small MobileNetV2 with
#   SAMPLE_SELECTION IoUMatcher, IOU_MATCHER.CENTER_IN_GT True, IGNORE_IOF_THRESH 0.5 of both rules
#   and BOX2BOX_TRANSFORM.CLAMP_BOTH_SIDES True, all below MODEL.ATSS.
OLD = Path(__file__).parents[1] / "data/old_configs"


def old_model(name):
    cfg = load_config(OLD / f"{name}.yaml")
    if name == "yacs":
        cfg.MODEL.DEVICE = "cpu"
        return build_model(cfg)
    return instantiate(cfg.model)


@pytest.mark.parametrize("name", ["lazy", "yacs"])
def test_a_saved_config_builds_the_model_of_its_time(name):
    model = old_model(name)
    assert type(model.matcher) is (ATSSMatcher if name == "lazy" else IoUMatcher)
    assert type(model.box2box_transform) is TwoSidedBox2BoxTransform
    assert model.box2box_transform.weights == (10.0, 10.0, 5.0, 5.0)
    assert model.matcher.ignore_ioa_thresh == 0.5
    if name == "yacs":
        assert model.matcher.center_in_gt
    weights = json.loads((OLD / "weights.json").read_text())[name]
    assert weights == {
        key: list(value.shape)
        for key, value in model.named_parameters()
        if not key.startswith("backbone.bottom_up.")
    }
    losses = model.train()([image(BOXES, [0, 1, 2, 0])])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_centerness"}
    assert all(value.isfinite() for value in losses.values())
    assert "instances" in model.eval()([image()])[0]


def test_a_saved_config_says_what_is_renamed_and_is_saved_with_the_new_names(tmp_path, caplog):
    cfg = load_config(OLD / "lazy.yaml")
    (record,) = caplog.records
    assert str(OLD / "lazy.yaml") in record.message
    coding = "atss_d2.modeling.box_coding"
    assert f"{coding}.box2box_transform is now {coding}.TwoSidedBox2BoxTransform" in record.message
    keys = [f"model.matcher.ignore_{name}_thresh" for name in ("iof", "ioa")]
    assert " is now ".join(keys) in record.message
    caplog.clear()
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    assert load_config(tmp_path / "config.yaml") == cfg
    assert not caplog.records


@pytest.mark.parametrize("arguments", ["", ", clamp_both_sides: false, weights: [1, 2, 3, 4]"])
def test_the_factory_of_box_coders_with_a_clamp_on_one_side(arguments, tmp_path):
    target = "atss_d2.modeling.box_coding.box2box_transform"
    (tmp_path / "config.yaml").write_text(f"model:\n  coder: {{_target_: {target}{arguments}}}\n")
    coder = instantiate(load_config(tmp_path / "config.yaml").model.coder)
    assert type(coder) is Box2BoxTransform
    assert list(coder.weights) == ([1, 2, 3, 4] if arguments else [10, 10, 5, 5])


# ----------------------------------------------------------------------------- each kind of name


@pytest.fixture
def renames(monkeypatch):
    """Renames of things that have a new name for the time of a test."""
    names = {"atss_d2.old_room": "atss_d2.modeling", "old_package": "atss_d2.modeling.matchers"}
    monkeypatch.setattr(config_renames, "_NAMES", names)
    lazy_keys = {"model.matcher.k": "model.matcher.topk", "train.len": "train.max_iter"}
    monkeypatch.setattr(config_renames, "_LAZY_KEYS", lazy_keys)
    yaml_keys = {
        "MODEL.ATSS.OLD": "MODEL.ATSS.MATCHER.TOPK",
        "MODEL.ATSS.NUM_CLASSES": "MODEL.ATSS.NUMBER_OF_CLASSES",  # no such key
    }
    monkeypatch.setattr(config_renames, "_YAML_KEYS", yaml_keys)


def test_targets_and_keys_of_a_saved_lazy_config(renames, tmp_path, caplog):
    (tmp_path / "config.yaml").write_text(
        """
model:
  matcher: {_target_: old_package.ATSSMatcher, k: 5}
  parts: [{_target_: atss_d2.old_room.head.ATSSHead, norm: BN}]
  function: !!python/name:atss_d2.old_room.make_resnet_stages ''
train: {output_dir: a}
"""
    )
    cfg = load_config(tmp_path / "config.yaml")
    assert cfg.model.matcher == {"_target_": "atss_d2.modeling.matchers.ATSSMatcher", "topk": 5}
    assert cfg.model.parts[0] == {"_target_": "atss_d2.modeling.head.ATSSHead", "norm": "BN"}
    assert cfg.model.function.__name__ == "make_resnet_stages"
    assert cfg.train == {"output_dir": "a"}
    (record,) = caplog.records
    assert "model.matcher.k is now model.matcher.topk" in record.message
    assert "old_package.ATSSMatcher is now atss_d2.modeling.matchers.ATSSMatcher" in record.message


def test_keys_of_a_saved_yaml_config(renames, tmp_path, caplog):
    base = tmp_path / "base.yaml"
    base.write_text("MODEL:\n  ATSS:\n    OLD: 5\n    NUM_CLASSES: 7\nSEED: 3\n")
    (tmp_path / "child.yaml").write_text("_BASE_: base.yaml\nSEED: 4\n")
    cfg = load_config(tmp_path / "child.yaml")
    assert cfg.MODEL.ATSS.MATCHER.TOPK == 5
    assert (cfg.MODEL.ATSS.NUM_CLASSES, cfg.SEED) == (7, 4)
    assert type(cfg.MODEL.ATSS) is CfgNode
    (record,) = caplog.records
    assert "MODEL.ATSS.OLD is now MODEL.ATSS.MATCHER.TOPK" in record.message


def test_overrides_with_old_keys(renames, caplog):
    cfg = apply_overrides(get_config("coco/atss_R_50_FPN_1x"), ["train.len=7", "model.matcher.k=5"])
    assert (cfg.train.max_iter, cfg.model.matcher.topk) == (7, 5)
    assert "len" not in cfg.train
    cfg = apply_yaml_overrides(get_cfg(), ["MODEL.ATSS.OLD", "5", "MODEL.ATSS.NUM_CLASSES", "7"])
    assert (cfg.MODEL.ATSS.MATCHER.TOPK, cfg.MODEL.ATSS.NUM_CLASSES) == (5, 7)
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.WARNING, "train.len is now train.max_iter"),
        (logging.WARNING, "model.matcher.k is now model.matcher.topk"),
        (logging.WARNING, "MODEL.ATSS.OLD is now MODEL.ATSS.MATCHER.TOPK"),
    ]


def test_a_key_with_another_form_today_says_how_to_write_it():
    cfg = get_config("coco/atss_R_50_FPN_1x")
    with pytest.raises(KeyError, match=r"write (\S+=\S+\.TwoSidedBox2BoxTransform)") as error:
        apply_overrides(cfg, ["model.box2box_transform.clamp_both_sides=True"])
    apply_overrides(cfg, [str(error.value.args[0]).rpartition("write ")[2]])
    coder = instantiate(cfg.model.box2box_transform)
    assert type(coder) is TwoSidedBox2BoxTransform
    assert coder.weights == (10.0, 10.0, 5.0, 5.0)


def test_a_new_target_keeps_the_arguments_that_it_takes():
    cfg = get_config("coco/atss_R_50_FPN_1x")
    coding = "atss_d2.modeling.box_coding"
    apply_overrides(cfg, [f"model.box2box_transform._target_={coding}.PointDistances"])
    assert type(instantiate(cfg.model.box2box_transform)) is PointDistances
    overrides = ["model.matcher.center_epsilon=0.5", "model.matcher._target_=atss_d2.IoUMatcher"]
    apply_overrides(cfg, [*overrides, "model.matcher.center_in_gt=True"])
    matcher = instantiate(cfg.model.matcher)
    assert (matcher.center_epsilon, matcher.center_in_gt) == (0.5, True)


@pytest.mark.parametrize(
    ("statement", "new"),
    [
        ("from atss_d2.checkpoint import apply_recipe", "checkpoint.apply_convention"),
        ("import atss_d2.checkpoint as c; c.RECIPES", "checkpoint.CONVENTIONS"),
        ("from atss_d2.modeling.box_coding import box2box_transform", ".Box2BoxTransform"),
    ],
)
def test_old_names_in_a_config_name_the_new_ones(statement, new, tmp_path):
    (tmp_path / "config.py").write_text(f"model = {{}}\n{statement}\n")
    with pytest.raises(ConfigError, match=rf"config.py', line 2: .* is now \S+{new}$"):
        load_config(tmp_path / "config.py")
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        __import__("atss_d2.checkpoint").checkpoint.other  # noqa: B018


def test_old_config_names_lead_to_the_new_ones():
    for name in ("authors", "mmdet"):
        new = f"conventions/atss_R_50_FPN_1x_{name}"
        with pytest.raises(FileNotFoundError, match=f"did you mean {new}"):
            get_config(f"recipes/atss_R_50_FPN_1x_{name}")
        with pytest.raises(FileNotFoundError, match=f"did you mean {new}"):
            load_config(f"configs/recipes/atss_R_50_FPN_1x_{name}.py")
