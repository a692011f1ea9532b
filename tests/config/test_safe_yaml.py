"""A yaml config runs nothing, whichever way it is loaded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig
from detectron2.layers import ShapeSpec
from omegaconf import OmegaConf

from atss_d2 import Predictor, get_cfg
from atss_d2.config import load_config
from atss_d2.config.safe_yaml import merge_yaml

ROOT = Path(__file__).parents[2]
ATTACKS = [
    "!!python/object/apply:os.system ['touch SENTINEL']",
    "!!python/object/new:os.system ['touch SENTINEL']",
    "!!python/object/apply:eval [\"open('SENTINEL', 'w')\"]",
    "!!python/object/apply:subprocess.check_call [[touch, SENTINEL]]",
    "!!python/object:os.PathLike {}",
    "!!python/module:antigravity",
    "!!python/object/apply:detectron2.layers.shape_spec.ShapeSpec [1]",
    "!!python/object/new:builtins.list {state: {a: 1}, listitems: [1]}",
]


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def lazy(attack: str) -> str:
    return f"model: {{_target_: builtins.dict, a: 1}}\ntrain:\n  x:\n    - {attack}\n"


def yacs(attack: str) -> str:
    return f"MODEL:\n  ATSS:\n    NUM_CLASSES: 3\n  WEIGHTS: {attack}\n"


def assert_refused(path: str, place: str, tag: str) -> None:
    for load in (load_config, lambda x: Predictor(x, "a.pth"), lambda x: merge_yaml(get_cfg(), x)):
        with pytest.raises(ValueError, match="would run code") as error:
            load(path)
        assert str(error.value).startswith(f"{place}: the tag '{tag}' would run code")
        assert "\n" not in str(error.value)
    assert not Path("SENTINEL").exists()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", [lazy, yacs])
def test_tags_that_run_code(attack, kind):
    text = kind(attack)
    Path("a.yaml").write_text(text)
    line = next(i for i, line in enumerate(text.splitlines(), 1) if "!!" in line)
    assert_refused("a.yaml", f"a.yaml, line {line}", attack.split(" ")[0])


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("is_list", [True, False])
def test_bases(depth, is_list):
    Path("sub").mkdir()
    Path("sub/base0.yaml").write_text(yacs(ATTACKS[0]))
    for i in range(depth):
        base = f"base{i}.yaml" if i < depth - 1 else f"sub/base{i}.yaml"
        name = f"sub/base{i + 1}.yaml" if i < depth - 1 else "a.yaml"
        base = f"[{base}]" if is_list else f'"{base}"'
        Path(name).write_text(f"_BASE_: {base}\nMODEL:\n  DEVICE: cpu\n")
    assert_refused("a.yaml", "sub/base0.yaml, line 4", ATTACKS[0].split(" ")[0])


def test_these_files_are_hostile_indeed():
    Path("a.yaml").write_text(lazy(ATTACKS[0]))
    LazyConfig.load("a.yaml")
    assert Path("SENTINEL").exists()
    Path("SENTINEL").unlink()
    Path("b.yaml").write_text("_BASE_: c.yaml\nMODEL:\n  DEVICE: cpu\n")
    Path("c.yaml").write_text(yacs(ATTACKS[0]))
    with pytest.raises(ValueError, match="Type mismatch"):  # after the call
        get_cfg().merge_from_file("b.yaml")
    assert Path("SENTINEL").exists()


def test_the_command(tmp_path):
    Path("a.yaml").write_text(yacs(ATTACKS[0]))
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", "a.yaml"]
    env = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "root")}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("train_net.py: a.yaml, line 4: the ta")
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]  # nor did the import write


# What is read


def test_values_of_lazy_configs():
    cfg = OmegaConf.create(
        {
            "model": {
                "norm": torch.nn.BatchNorm2d,
                "function": torch.nn.functional.relu,
                "pair": (1, (2, "x")),
                "shape": ShapeSpec(channels=3, stride=2),
                "text": "é",
                "none": None,
            }
        },
        flags={"allow_objects": True},
    )
    LazyConfig.save(cfg, "config.yaml")
    assert not Path("config.yaml.pkl").exists()
    model = load_config("config.yaml").model
    assert model.norm is torch.nn.BatchNorm2d
    assert model.function is torch.nn.functional.relu
    assert list(model.pair) == [1, (2, "x")] or list(model.pair) == [1, [2, "x"]]
    assert model.shape == ShapeSpec(channels=3, stride=2)
    assert (model.text, model.none) == ("é", None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "!!python/name:antigravity.webbrowser ''",
            "no class or function 'antigravity.webbrowser'",
        ),
        ("!!python/name:os.environ ''", "no class or function 'os.environ'"),
        ("!!python/name:torch.nowhere ''", "no class or function 'torch.nowhere'"),
        ("!!python/name:torch ''", "no class or function 'torch'"),
        ("!!python/tuple {a: 1}", "expected a sequence node"),
        ("!!python/object:detectron2.layers.shape_spec.ShapeSpec {channels: x}", "whole numbers"),
        ("!!python/object:detectron2.layers.shape_spec.ShapeSpec {width: 1, x: 1}", "whole numb"),
        ("{a: [", "is not yaml: "),
        ("\t- 1", "is not yaml: "),
        ("\x07", "is not yaml: "),
        ("&a [*a]", "contains itself|found unconstructable recursive node"),
        ("[" * 1200, "nested too deeply"),
    ],
)
def test_wrong_values(value, message):
    Path("a.yaml").write_text(f"model:\n  a: {value}\n")
    with pytest.raises(ValueError, match=f"^a.yaml.*{message}") as error:
        load_config("a.yaml")
    assert "antigravity" not in sys.modules
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "[1, 2]", "text", "MODEL: [", "MODEL:\n  NOTHING: 1\n"])
def test_wrong_yacs_files(content):
    Path("a.yaml").write_text(content)
    with pytest.raises((ValueError, KeyError)) as error:
        load_config("a.yaml")
    assert "a.yaml" in str(error.value) or "NOTHING" in str(error.value)


def test_detectron2_own_files_may_compute():
    # Base-RetinaNet.yaml makes its anchor sizes by eval.
    path = model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    Path("a.yaml").write_text(f'_BASE_: "{path}"\nMODEL:\n  DEVICE: cpu\n')
    for name in (path, "a.yaml"):
        cfg = load_config(name)
        assert isinstance(cfg, CfgNode)
        assert cfg.MODEL.ANCHOR_GENERATOR.SIZES[0][1] == pytest.approx(32 * 2 ** (1 / 3))
    # A copy is somebody else's file.
    shutil.copytree(Path(path).parents[1], "copy")
    with pytest.raises(
        ValueError, match=r"Base-RetinaNet.yaml, line 8: the tag '!!python/object/a"
    ):
        load_config("copy/COCO-Detection/retinanet_R_50_FPN_1x.yaml")
