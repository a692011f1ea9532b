import copy
import re

import pytest
from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from atss_d2 import get_cfg, get_config
from atss_d2.engine import apply_overrides, apply_yaml_overrides


@pytest.fixture(scope="module")
def loaded_cfg() -> DictConfig:
    return get_config("coco/atss_R_50_FPN_1x")


@pytest.fixture
def cfg(loaded_cfg) -> DictConfig:
    return copy.deepcopy(loaded_cfg)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.max_iter=10", 10),
        ("optimizer.lr=1e-3", 0.001),
        ("optimizer.params.base_lr=0.5", 0.5),  # was "${..lr}"
        ("model.head.num_classes=7", 7),  # was "${..num_classes}"
        ("model.anchor_generator.sizes=[[32],[64],[128]]", [[32], [64], [128]]),
        ("model.anchor_generator.sizes.1=[48]", [48]),
        ("model.anchor_generator.sizes.1.0=48", 48),
        ("model.backbone.bottom_up.stages.depth=101", 101),
        ("model.head.input_shape.0.channels=64", 64),
        ("dataloader.train.mapper.augmentations.0.short_edge_length=[640,800]", [640, 800]),
        ("dataloader.train.dataset.names=[a_train,b_train]", ["a_train", "b_train"]),
        ("train.output_dir='a, b=c'", "a, b=c"),
        ('train.output_dir="it\'s (here)"', "it's (here)"),
        ("train.output_dir=", ""),
        ("train.init_checkpoint=detectron2://a/R-50.pkl", "detectron2://a/R-50.pkl"),
        (
            "train.init_checkpoint='a.pth?matching_heuristics=True'",
            "a.pth?matching_heuristics=True",
        ),
        ("model.head_in_features=null", None),
        ("model.head_in_features=None", None),
        (  # what it does not name stays
            "train.amp={enabled:True,dtype:bfloat16}",
            {"enabled": True, "dtype": "bfloat16", "inference": False},
        ),
        ("train.amp.enabled=true", True),
        ("train.max_iter=${train.eval_period}", 5000),
        ("train.max_iter = 10", 10),
        # Arguments of a constructor that the config leaves to their defaults.
        ("model.test_score_thresh=0.3", 0.3),
        ("model.matcher.topk=5", 5),
        ("optimizer.nesterov=True", True),
        ("dataloader.train.dataset.filter_empty=False", False),
        ("dataloader.train.aspect_ratio_grouping=False", False),  # behind @configurable
        ("+train.note=hello", "hello"),
        ("++train.deep.er=1", 1),
    ],
)
def test_values_reach_their_keys(cfg, override, value):
    assert apply_overrides(cfg, [override]) is cfg
    assert OmegaConf.select(cfg, override.partition("=")[0].strip(" +")) == value


def test_integral_floats_stay_integers(cfg):
    apply_overrides(cfg, ["train.max_iter=9e4", "optimizer.lr=1"])
    assert cfg.train.max_iter == 90000
    assert isinstance(cfg.train.max_iter, int)


def test_later_overrides_win_and_see_earlier_ones(cfg):
    overrides = ["train.max_iter=5", "+train.new={a:1}", "train.new.a=2", "train.max_iter=6"]
    apply_overrides(cfg, overrides)
    assert cfg.train.max_iter == 6
    assert cfg.train.new.a == 2


def test_merging_a_node_keeps_its_other_keys(cfg):
    apply_overrides(cfg, ["dataloader.train.mapper.augmentations.1={horizontal:False}"])
    augmentation = cfg.dataloader.train.mapper.augmentations[1]
    assert augmentation.horizontal is False
    assert "_target_" in augmentation


def test_arguments_of_a_base_class_behind_kwargs():
    cfg = get_config("demo/atss_mobilenetv2_trees")
    assert "use_keypoint" not in cfg.dataloader.train.mapper
    apply_overrides(cfg, ["dataloader.train.mapper.use_keypoint=True"])
    assert cfg.dataloader.train.mapper.use_keypoint is True
    with pytest.raises(KeyError, match=r"mapper\.use_keypoint"):
        apply_overrides(cfg, ["dataloader.train.mapper.use_keypiont=True"])


def test_a_saved_config_takes_the_same_overrides(cfg, tmp_path):
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))  # targets are strings in there
    loaded = LazyConfig.load(str(tmp_path / "config.yaml"))
    apply_overrides(loaded, ["model.test_score_thresh=0.3", "model.head.prior_prob=0.1"])
    assert loaded.model.test_score_thresh == 0.3
    with pytest.raises(KeyError, match=r"did you mean model\.test_score_thresh"):
        apply_overrides(loaded, ["model.test_score_tresh=0.3"])


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.max_itr", "train.max_iter"),
        ("trian.max_iter", "train.max_iter"),
        ("model.test_score_tresh", "model.test_score_thresh"),  # an argument, not in the config
        ("model.matcher.topkk", "model.matcher.topk"),
        ("max_iter", "train.max_iter"),
        ("dataloader.total_batch_size", "dataloader.train.total_batch_size"),
        (
            "dataloader.train.mapper.augmentations.0.short_edge_lenght",
            "dataloader.train.mapper.augmentations.0.short_edge_length",
        ),
        ("model.anchor_generator.sizes.5", "model.anchor_generator.sizes"),  # there are 0 to 4
        ("model.head.num_classes.x", "model.head.num_classes"),
        ("train..max_iter", "train.max_iter"),
        ("~train.seed", "train.seed"),
        ("train.amp={enabled:True,dtyp:bfloat16}", "train.amp.dtype"),
    ],
)
def test_unknown_keys_name_the_nearest(loaded_cfg, key, nearest):
    with pytest.raises(KeyError, match=rf"has no key '.*'; did you mean {re.escape(nearest)}"):
        apply_overrides(loaded_cfg, [key if "=" in key else f"{key}=10"])


@pytest.mark.parametrize("key", ["", ".", "@", "xyzzy"])
def test_keys_like_nothing_name_the_top_level(loaded_cfg, key):
    with pytest.raises(KeyError, match="top-level keys: dataloader, model, optimizer"):
        apply_overrides(loaded_cfg, [f"{key}=10"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.WEIGHTS", "x.pth"], "takes key=value; write train.init_checkpoint=x.pth"),
        (["MODEL.WEIGHTS"], "takes key=value; write train.init_checkpoint=VALUE"),
        (["train.max_iter"], "'train.max_iter' is not an override"),
        (["train.max_iter=5", "--resume"], "'--resume' is not an override; flags .* before"),
        (
            ["train.max_iter=5", "--num-gpus=2"],
            "'--num-gpus=2' is not an override; flags .* before",
        ),
        (["train.max_iter=abc"], "train.max_iter must be a number, got 'abc'"),
        (["train.amp.enabled=ture"], "train.amp.enabled must be True or False, got 'ture'"),
        (["train.amp=True"], "'train.amp' is not a value.*train.amp.enabled, train.amp.dtype"),
        (["train.output_dir=a,b"], r"several values in Hydra's grammar; a list is \[a,b\]"),
        (["train.max_iter=range(1,3)"], "several values in Hydra's grammar"),
        (["train.output_dir=a=b"], "quote it so that the shell keeps the quotes"),
        (["train.output_dir=~/x"], "quote it so that the shell keeps the quotes"),
        (["model.anchor_generator.sizes=[[32]"], "not a value in Hydra's grammar"),
        (["model.head.input_shape.0.channels=abc"], "channels must be a number, got 'abc'"),
        (["model.head.input_shape.0.channels=1.5"], "could not be converted to Integer"),
        (["+model.anchor_generator.sizes.9=[8]"], "list index out of range"),
        (["MODEL.WEIGHTS=x.pth"], r"in a LazyConfig it is train\.init_checkpoint"),
        (["+train.max_iter.x=1"], r"train\.max_iter is a value"),
    ],
)
def test_what_is_no_override_is_explained(loaded_cfg, overrides, message):
    before = OmegaConf.to_container(loaded_cfg)
    with pytest.raises((KeyError, ValueError), match=message) as error:
        apply_overrides(loaded_cfg, ["train.seed=5", "+train.new=1", *overrides])
    assert "\n" not in str(error.value)
    assert OmegaConf.to_container(loaded_cfg) == before


def test_yaml_overrides():
    cfg = get_cfg()
    overrides = ["SOLVER.MAX_ITER", "5", "MODEL.WEIGHTS", "a.pth?matching_heuristics=True"]
    assert apply_yaml_overrides(cfg, overrides) is cfg
    assert cfg.SOLVER.MAX_ITER == 5
    assert cfg.MODEL.WEIGHTS == "a.pth?matching_heuristics=True"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["SOLVER.MAX_ITR", "5"], KeyError, "'SOLVER.MAX_ITR'; did you mean SOLVER.MAX_ITER"),
        (["MODEL.ATSS.MATCHER.TOPKK", "5"], KeyError, "did you mean MODEL.ATSS.MATCHER.TOPK"),
        (["train.max_iter=5"], ValueError, "'train.max_iter=5': a yaml config takes KEY VALUE"),
        (["SOLVER.MAX_ITER=5"], ValueError, "a yaml config takes KEY VALUE"),
        (["SOLVER.MAX_ITER", "5", "--resume"], ValueError, "flags such as --resume stand before"),
        (["SOLVER.MAX_ITER", "5", "--num-gpus", "2"], ValueError, "'--num-gpus' is not"),
        (["SOLVER.MAX_ITER"], ValueError, "'SOLVER.MAX_ITER' has no value"),
        (["SOLVER.MAX_ITER", "abc"], ValueError, "Type mismatch"),
    ],
)
def test_wrong_yaml_overrides(overrides, error, message):
    cfg = get_cfg()
    with pytest.raises(error, match=message):
        apply_yaml_overrides(cfg, overrides)
    assert cfg.SOLVER.MAX_ITER == 90000
