"""The files that turn a row of the paper into a small experiment: they keep what it is about."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from omegaconf import OmegaConf

import atss_d2
from ablations import ROWS, load_row_config
from ablations.configs import config_hash
from atss_d2 import get_config
from atss_d2.config import load_config

ROW = {row.name: row for row in ROWS}
# One of each kind: every switch of the head, every rule, both coders, several anchors, two equal.
NAMES = [
    "table1/retinanet",
    "table2/iou_box",
    "table2/iou_point",
    "table2/spatial_scale_box",
    "table3/retinanet",
    "table3/fcos_center_sampling",
    "table4/k3",
    "table5/scale5",
    "table6/aspect_4_1",
    "table7/atss_3x3",
]


@pytest.fixture(scope="module")
def small_configs():
    """Laid out for the generated scenes; not to be changed."""
    return {name: load_row_config(ROW[name], "shapes") for name in NAMES}


def subject(cfg):
    """What a row is about: everything that an override file must leave alone."""
    model = OmegaConf.to_container(cfg.model, resolve=False)
    for key in ("backbone", "num_classes", "input_format", "pixel_mean", "pixel_std"):
        model.pop(key, None)
    for key in ("input_shape", "conv_dims"):
        model["head"].pop(key, None)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_the_small_experiment_keeps_what_a_row_is_about(small_configs, name):
    small = small_configs[name]
    assert subject(small) == subject(get_config(f"ablations/{name}"))
    backbone = small.model.backbone
    assert backbone.bottom_up._target_ is atss_d2.TorchvisionBackbone
    assert "stages" not in backbone.bottom_up  # nothing of the ResNet is left
    assert small.dataloader.train.total_batch_size < 16
    assert small.train.max_iter < 10_000
    assert "momentum" not in small.optimizer
    assert small.train.log_period == 20  # the rest of the node is merged
    assert small.train.amp.enabled is False


@pytest.mark.parametrize(
    ("name", "data"),
    [("table1/retinanet", "trees"), ("table3/fcos_atss", "shapes")],
)
def test_the_small_experiment_builds_and_reloads(name, data, tmp_path):
    cfg = load_row_config(ROW[name], data)
    LazyConfig.save(cfg, str(tmp_path / "run.yaml"))
    again = load_config(tmp_path / "run.yaml")
    with torch.device("meta"):
        model, reloaded = instantiate(cfg.model), instantiate(again.model)
    assert str(reloaded) == str(model)
    for split in (cfg.dataloader.train, cfg.dataloader.test):
        classes = MetadataCatalog.get(split.dataset.names).thing_classes
        assert model.num_classes == model.head.num_classes == len(classes)
    assert again.dataloader.test.mapper.image_format == "RGB"
    assert instantiate(again.lr_multiplier)(0.5) == instantiate(cfg.lr_multiplier)(0.5)


def test_rows_stay_apart_and_together_on_small_data(small_configs):
    groups = {}
    for name, cfg in small_configs.items():
        groups.setdefault(config_hash(cfg), []).append(name)
    big = {}
    for name in small_configs:
        big.setdefault(config_hash(get_config(f"ablations/{name}")), []).append(name)
    assert sorted(groups.values()) == sorted(big.values())
    assert ["table2/iou_box", "table3/retinanet"] in groups.values()


def test_hash_ignores_place_and_seed_only(small_configs):
    cfg = small_configs["table4/k3"].copy()
    expected = config_hash(cfg)
    cfg.train.update(output_dir="elsewhere", seed=7)
    assert config_hash(cfg) == expected
    assert cfg.train.seed == 7  # the config itself is left alone
    cfg.train.max_iter += 1
    assert config_hash(cfg) != expected
