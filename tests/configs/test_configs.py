"""Every recipe: loads, saves, reloads, builds, and says what it is; the numbers are the paper's."""

import ast
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model as build_yaml_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.solver import LRMultiplier, build_lr_scheduler, build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from atss_d2 import ATSS, list_configs
from atss_d2.config import get_config_path, load_config
from atss_d2.data import BoxDatasetMapper, DataError
from atss_d2.engine.data_check import check_dataset_files

ROOT = Path(get_config_path("coco/atss_R_50_FPN_1x")).parents[2]
LAZY = list_configs()
# Those with multi-scale testing are the same models: test_tta_configs.py.
COCO = [name for name in LAZY if name.startswith("coco/") and not name.endswith("_tta")]
CUSTOM = ["custom/atss_R_50", "custom/atss_mobilenetv2"]
YAML = sorted(path.name for path in (ROOT / "configs/yaml").glob("atss_*.yaml"))

# Parameters, frozen ones included.
NUM_PARAMETERS = {
    "atss_R_50_FPN_1x": 32_244_250,
    "atss_R_101_FPN_1x": 51_184_154,
    "atss_R_101_FPN_2x": 51_184_154,
    "atss_X_101_32x8d_FPN_2x": 95_328_794,
    "atss_X_101_64x4d_FPN_2x": 89_992_730,
    "atss_dcnv2_R_50_FPN_1x": 33_239_983,
    "atss_dcnv2_R_101_FPN_1x": 53_237_882,
    "atss_dcnv2_R_101_FPN_2x": 53_237_882,
    "atss_dcnv2_X_101_32x8d_FPN_2x": 102_670_094,
    "atss_dcnv2_X_101_64x4d_FPN_2x": 97_334_030,
}


@pytest.fixture(scope="module")
def meta_models(configs) -> dict[str, nn.Module]:
    """The models of the COCO recipes without memory for their weights."""
    with torch.device("meta"):
        return {name: instantiate(configs[name].model) for name in COCO}


def callables(node) -> list:
    """All functions and classes in a config."""
    if isinstance(node, DictConfig):
        return [c for name in node for c in callables(node[name])]
    if isinstance(node, ListConfig):
        return [c for value in node for c in callables(value)]
    return [node] if callable(node) else []


def plain(node):
    """A config as dicts and lists; targets that a file names are found, "${...}" stays as it is."""
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node)
    if isinstance(node, dict):
        node = {key: plain(value) for key, value in node.items()}
        if isinstance(node.get("_target_"), str):
            node["_target_"] = locate(node["_target_"])
        return node
    return [plain(value) for value in node] if isinstance(node, list) else node


# The ablations are of the same parts: a saved and a built one of each table is enough.
KINDS = [x for x in LAZY if not x.startswith("ablations/") or x.endswith(("retinanet", "atss_3x3"))]


@pytest.mark.parametrize("name", KINDS)
def test_loads_saves_and_reloads(configs, name, tmp_path):
    cfg = configs[name]
    assert set(cfg) >= {"model", "dataloader", "optimizer", "lr_multiplier", "train"}
    for function in callables(cfg):
        assert function.__name__ != "<lambda>"
        pickle.dumps(function)  # by its name
    path = tmp_path / "config.yaml"
    LazyConfig.save(cfg, str(path))
    assert not (tmp_path / "config.yaml.pkl").exists()  # Detectron2's way out of lambdas
    tags = {word for word in path.read_text().split() if word.startswith("!!")}
    assert tags <= {"!!python/object:detectron2.layers.shape_spec.ShapeSpec"}
    again = load_config(path)
    assert plain(again) == plain(cfg)


@pytest.mark.parametrize("name", LAZY)
def test_says_what_it_is(name):
    source = (ROOT / f"configs/{name}.py").read_text()
    docstring = ast.get_docstring(ast.parse(source))
    title, command = docstring.splitlines()[:3:2]
    assert title.endswith(".")
    assert f"python train_net.py --config-file configs/{name}.py" in command
    if name in COCO:
        assert ", ResNe" in title
        last = docstring.splitlines()[-1]
        assert last.startswith("Quoted COCO") or last.startswith("No AP is quoted")


@pytest.mark.parametrize("name", YAML)
def test_yaml_says_what_it_is(name):
    lines = (ROOT / "configs/yaml" / name).read_text().splitlines()
    assert lines[0] == f"# python train_net.py --config-file configs/yaml/{name} --num-gpus 8"
    assert lines[1].startswith("# Quoted COCO")
    lazy = (ROOT / "configs/coco" / name).with_suffix(".py").read_text()
    assert lines[1].removeprefix("# ") in lazy


# Models


@pytest.mark.parametrize(("name", "num_parameters"), NUM_PARAMETERS.items())
def test_the_ten_models_of_the_authors(meta_models, name, num_parameters):
    model = meta_models[f"coco/{name}"]
    assert isinstance(model, ATSS)
    assert sum(p.numel() for p in model.parameters()) == num_parameters
    deform = "dcnv2" in name
    names = [key for key, _ in model.named_parameters()]
    stages = sorted({key.split(".")[2] for key in names if "conv2_offset" in key})
    expected = ["res4", "res5"] if "X_101" in name else ["res3", "res4", "res5"]
    assert stages == (expected if deform else [])
    assert any(key.startswith("head.cls_subnet.9.offset") for key in names) == deform
    assert any(key.startswith("head.bbox_subnet.9.offset") for key in names) == deform
    res2 = model.backbone.bottom_up.res2
    assert res2[0].conv1.stride == (1, 1)
    first = model.backbone.bottom_up.res3[0]
    # MSRA's weights have their stride in the 1x1 convolution, ResNeXt's in the 3x3.
    assert (first.conv1.stride[0], first.conv2.stride[0]) == ((1, 2) if "X_101" in name else (2, 1))
    groups = {"32x8d": 32, "64x4d": 64}.get(name.split("101_")[-1].split("_")[0], 1)
    assert first.conv2.groups == groups
    frozen = {key.split(".")[2] for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert model.backbone.size_divisibility == 32


@pytest.mark.parametrize("name", [x for x in LAZY if x.startswith(("coco/", "custom/", "demo/"))])
def test_images(configs, name):
    """16 bits of gray are read as 8 (by our mapper only), in the sizes of the paper."""
    dataloader = configs[name].dataloader
    mappers = [instantiate(dataloader[part].mapper) for part in ("train", "test")]
    is_drawn = "shapes" in str(dataloader.train.dataset.names)
    assert is_drawn or all(isinstance(mapper, BoxDatasetMapper) for mapper in mappers)
    if name not in COCO:
        return
    resize, test_resize = (mapper.augmentations.augs[0] for mapper in mappers)
    image = np.zeros((700, 900, 3), np.uint8)
    sizes = {resize.get_transform(image).new_h for _ in range(50)}
    if name.endswith("2x"):
        assert 640 <= min(sizes) < 700 < max(sizes) <= 800
        assert len(sizes) > 10
    else:
        assert sizes == {800}
    transform = test_resize.get_transform(image)
    assert (transform.new_h, transform.new_w) == (800, 1029)
    transform = test_resize.get_transform(image[:500])
    assert max(transform.new_h, transform.new_w) == 1333


@pytest.mark.parametrize("name", [x for x in LAZY if x.startswith("demo/") and "tta" not in x])
def test_the_demo_models_build(configs, name):
    with torch.device("meta"):
        kind = GeneralizedRCNN if "rcnn" in name else ATSS
        assert isinstance(instantiate(configs[name].model), kind)


@pytest.mark.parametrize("name", CUSTOM)
def test_configs_for_your_data_are_neutral(configs, name):
    """No augmentation of a certain kind of photographs; what training needs is switched on."""
    cfg = configs[name]
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert isinstance(model, ATSS)
    assert (cfg.model.num_classes, cfg.model.head.num_classes) == (1, 1)
    augmentations = [instantiate(x) for x in cfg.dataloader.train.mapper.augmentations]
    kinds = [type(x).__name__ for x in augmentations]
    colors = ["RandomBrightness", "RandomContrast", "RandomSaturation"]
    assert kinds == ["ResizeShortestEdge", "RandomFlip", *colors]
    assert (augmentations[1].horizontal, augmentations[1].vertical) == (True, False)
    low, high = augmentations[0].short_edge_length
    (test_resize,) = (instantiate(x) for x in cfg.dataloader.test.mapper.augmentations)
    assert low < test_resize.short_edge_length[0] <= high
    rgb = name == "custom/atss_mobilenetv2"
    assert cfg.train.init_checkpoint.endswith("mobilenet_v2.pth" if rgb else "MSRA/R-50.pkl")
    assert cfg.dataloader.train.mapper.image_format == ("RGB" if rgb else "BGR")


@pytest.mark.parametrize("name", CUSTOM)
def test_configs_for_your_data_ask_for_them(configs, name):
    with pytest.raises(DataError, match="'my_train' stands for .* tools/start_project.py writes"):
        check_dataset_files(configs[name], with_training=True)
    with pytest.raises(DataError, match="'my_val' stands for a data set of your own"):
        check_dataset_files(configs[name], with_training=False)


# Schedule and optimizer


@pytest.mark.parametrize("name", COCO)
def test_schedule(configs, name):
    cfg = configs[name]
    is_2x = name.endswith("2x")
    max_iter, first, second = (180000, 120000, 160000) if is_2x else (90000, 60000, 80000)
    assert cfg.train.max_iter == max_iter
    multiplier = instantiate(cfg.lr_multiplier)
    warm_up = {0: 1 / 3, 250: 1 / 3, 499: 1 / 3}
    if "vfnet" in name:
        warm_up = {0: 0.1, 250: 0.55, 499: 0.9982}
    expected = {
        **warm_up,
        500: 1,
        first - 1: 1,
        first: 0.1,
        second - 1: 0.1,
        second: 0.01,
        max_iter - 1: 0.01,
    }
    found = {i: multiplier(i / max_iter) for i in expected}
    assert found == pytest.approx(expected)


class Detector(nn.Module):
    """Has a parameter of every kind that optimizers treat in their own way."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.head = nn.Sequential(nn.Conv2d(2, 2, 1), nn.GroupNorm(1, 2))
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)


def rates_and_decays(model: nn.Module, optimizer) -> dict[str, tuple[float, float]]:
    found = {
        p: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    return {name: found[p] for name, p in model.named_parameters() if p in found}


@pytest.mark.parametrize("name", KINDS)
def test_optimizer_and_schedule_build(configs, name):
    cfg = OmegaConf.create(
        {key: configs[name][key] for key in ("optimizer", "lr_multiplier", "train")},
        flags={"allow_objects": True},
    )
    model = Detector()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    found = rates_and_decays(model, optimizer)
    assert set(found) == {key for key, p in model.named_parameters() if p.requires_grad}
    scheduler = LRMultiplier(optimizer, instantiate(cfg.lr_multiplier), cfg.train.max_iter)
    assert scheduler.get_last_lr()[0] > 0
    if name in COCO:
        assert found == {  # biases: twice the rate and no decay, Gn's and BN's as well
            key: pytest.approx((0.02, 0.0) if key.endswith("bias") else (0.01, 1e-4))
            for key in found
        }
        assert optimizer.defaults["momentum"] == 0.9


@pytest.mark.parametrize("name", YAML)
def test_yaml_solver_is_the_lazy_one(configs, name):
    yaml_cfg = load_config(ROOT / "configs/yaml" / name)
    lazy_cfg = configs[f"coco/{Path(name).stem}"]
    model = Detector()
    optimizer = build_optimizer(yaml_cfg, model)
    lazy_optimizer = OmegaConf.create(
        {"optimizer": lazy_cfg.optimizer}, flags={"allow_objects": True}
    ).optimizer
    lazy_optimizer.params.model = model
    expected = rates_and_decays(model, instantiate(lazy_optimizer))
    assert rates_and_decays(model, optimizer) == {
        key: pytest.approx(value) for key, value in expected.items()
    }
    assert lazy_cfg.train.max_iter == yaml_cfg.SOLVER.MAX_ITER
    assert lazy_cfg.dataloader.train.total_batch_size == yaml_cfg.SOLVER.IMS_PER_BATCH
    scheduler = build_lr_scheduler(yaml_cfg, optimizer)
    multiplier = instantiate(lazy_cfg.lr_multiplier)
    max_iter = lazy_cfg.train.max_iter
    for i in [0, 499, 500, 59999, 60000, 80000, 119999, 120000, 160000, max_iter - 1]:
        if i < max_iter:
            assert scheduler._multiplier(i / max_iter) == pytest.approx(multiplier(i / max_iter))
    assert lazy_cfg.train.init_checkpoint == yaml_cfg.MODEL.WEIGHTS


# yaml models


@pytest.mark.parametrize("name", YAML)
def test_yaml_model_is_the_lazy_one(meta_models, name):
    cfg = load_config(ROOT / "configs/yaml" / name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_yaml_model(cfg)
    expected = meta_models[f"coco/{Path(name).stem}"]
    assert [(key, p.shape, p.requires_grad) for key, p in model.named_parameters()] == [
        (key, p.shape, p.requires_grad) for key, p in expected.named_parameters()
    ]
    assert str(model) == str(expected)  # strides, paddings, norms


def test_yaml_model_computes_what_the_lazy_one_does(configs):
    torch.manual_seed(0)
    model = instantiate(configs["coco/atss_R_50_FPN_1x"].model)
    cfg = load_config(ROOT / "configs/yaml/atss_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    yaml_model = build_yaml_model(cfg)
    yaml_model.load_state_dict(model.state_dict())
    image = torch.randint(0, 255, (3, 64, 96)).float()
    boxes = Boxes(torch.tensor([[8.0, 8.0, 72.0, 60.0]]))
    gt = Instances((64, 96), gt_boxes=boxes, gt_classes=torch.tensor([3]))
    batch = [{"image": image, "height": 128, "width": 192, "instances": gt}]
    outputs = []
    for built in (model, yaml_model):
        with torch.no_grad():
            losses = built.train()(batch)
            built.test_score_thresh = 0.0
            instances = built.eval()(batch)[0]["instances"]
        outputs.append({**losses, "boxes": instances.pred_boxes.tensor, "scores": instances.scores})
    assert len(outputs[0]["boxes"]) == 100
    assert all(math.isfinite(outputs[0][key]) for key in losses)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0)
