"""The checkpointer: what Detectron2's loads, loaded safely; prefixes; where it is used."""

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from atss_d2 import Predictor
from atss_d2.checkpoint import CheckpointError, SafeCheckpointer, check_checkpoint, save_file
from atss_d2.commands import train as train_net
from atss_d2.config import load_config
from atss_d2.engine import Trainer, do_train, load_weights
from tests import detector, toy


class Backbone(nn.Module):
    """With names as in Detectron2's ResNets."""

    def __init__(self):
        super().__init__()
        self.bottom_up = nn.Module()
        self.bottom_up.stem = nn.Module()
        self.bottom_up.stem.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bottom_up.stem.conv1.norm = nn.BatchNorm2d(4)
        self.bottom_up.res2 = nn.Sequential(nn.Module())
        self.bottom_up.res2[0].conv1 = nn.Conv2d(4, 4, 1, bias=False)
        self.fpn_lateral2 = nn.Conv2d(4, 4, 1)


@pytest.fixture
def model() -> Backbone:
    return Backbone()


def loaded(checkpointer_class, model: nn.Module, path) -> dict:
    model = copy.deepcopy(model)
    checkpointer_class(model).load(str(path))
    return dict(model.state_dict())


def arrays(*shapes: tuple) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


STEM, BIAS, BLOCK = (4, 3, 3, 3), (4,), (4, 4, 1, 1)


def write_pickle(path: Path, content) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def detectron2_zoo(folder: Path, **more) -> Path:
    stem, mean, block = arrays(STEM, BIAS, BLOCK)
    weights = {"stem.conv1.weight": stem, "stem.conv1.norm.running_mean": mean}
    weights |= {"res2.0.conv1.weight": block, "stem.fc.weight": np.zeros((10, 4), np.float32)}
    content = {"model": weights | more, "__author__": "someone", "matching_heuristics": True}
    return write_pickle(folder / "R-50.pkl", content)


def caffe2_image_net(folder: Path) -> Path:
    stem, scale, block = arrays(STEM, BIAS, BLOCK)
    content = {"conv1_w": stem, "res_conv1_bn_s": scale, "res2_0_branch2a_w": block}
    content |= {"conv1_w_momentum": stem, "fc1000_w": np.zeros((10, 4), np.float32)}
    return write_pickle(folder / "caffe2.pkl", content)


def caffe2_detector(folder: Path) -> Path:
    stem, lateral, bias = arrays(STEM, BLOCK, BIAS)
    blobs = {"conv1_w": stem, "fpn_inner_res2_0_sum_lateral_w": lateral}
    blobs |= {"fpn_inner_res2_0_sum_lateral_b": bias, "lr": np.float32(0.1)}
    blobs["lr"] = np.array(0.1)
    return write_pickle(folder / "detector.pkl", {"blobs": blobs, "cfg": "TRAIN: 1\n"})


def of_pycls(folder: Path) -> Path:
    state = {"stem.conv1.weight": torch.randn(STEM), "head.num_batches_tracked": torch.tensor(1)}
    torch.save({"model_state": state, "epoch": 3}, folder / "a.pyth")
    return folder / "a.pyth"


def of_torch(folder: Path, **more) -> Path:
    torch.save({"model": Backbone().state_dict(), "iteration": 4, **more}, folder / "a.pth")
    return folder / "a.pth"


def bare(folder: Path) -> Path:
    torch.save({f"module.{k}": v for k, v in Backbone().state_dict().items()}, folder / "b.pth")
    return folder / "b.pth"


def with_query(folder: Path) -> str:
    state = {"stem.conv1.weight": torch.randn(STEM)}
    torch.save({"model": state}, folder / "c.pth")
    return f"{folder / 'c.pth'}?matching_heuristics=True"


@pytest.mark.parametrize(
    "make",
    [detectron2_zoo, caffe2_image_net, caffe2_detector, of_pycls, of_torch, bare, with_query],
)
def test_loads_what_detectron2_loads(tmp_path, model, make):
    path = make(tmp_path)
    expected = loaded(DetectionCheckpointer, model, path)
    torch.testing.assert_close(loaded(SafeCheckpointer, model, path), expected, rtol=0, atol=0)
    assert any((value != model.state_dict()[name]).any() for name, value in expected.items())


def test_safetensors(tmp_path, model):
    state = Backbone().state_dict()
    path = save_file(state, tmp_path / "a.safetensors", {"text": "x"})
    torch.testing.assert_close(loaded(SafeCheckpointer, model, path), dict(state))
    assert SafeCheckpointer(model).load(str(path)) == {"metadata": {"text": "x"}}
    stem = {"stem.conv1.weight": torch.ones(STEM)}
    path = save_file(stem, tmp_path / "b.safetensors")
    after = loaded(SafeCheckpointer, model, f"{path}?matching_heuristics=True")
    assert (after["bottom_up.stem.conv1.weight"] == 1).all()


def test_prefixes_of_path_handlers(tmp_path, model, handler):
    detectron2_zoo(tmp_path)
    with pytest.raises(CheckpointError, match=f"no checkpoint at '{handler}nowhere.pkl': give t"):
        check_checkpoint(f"{handler}nowhere.pkl")
    expected = loaded(SafeCheckpointer, model, tmp_path / "R-50.pkl")
    torch.testing.assert_close(loaded(SafeCheckpointer, model, f"{handler}R-50.pkl"), expected)


# Other implementations


def test_a_failed_conversion_names_the_file(tmp_path):
    path = of_torch(tmp_path)
    with pytest.raises(CheckpointError, match=f"'authors://{path}' is refused: .*bottom_up"):
        load_weights(detector.build(), f"authors://{path}")
    with pytest.raises(CheckpointError, match="converted for the model ATSS, not for Backbone"):
        load_weights(Backbone(), f"mmdet://{path}")


# What does not fit


@pytest.mark.parametrize(
    "path",
    [
        "nowhere.pth",
        "nowhere.pkl?matching_heuristics=True",
        "authors://nowhere.pth",
        "mmdet:///nowhere/a.pth",
        "authors://",
        "author://a.pth",  # no such prefix
        ".",
    ],
)
def test_missing_files_are_named(path, model):
    name = path.partition("?")[0].removeprefix("authors://").removeprefix("mmdet://")
    for call in (check_checkpoint, SafeCheckpointer(model).load):
        with pytest.raises(FileNotFoundError, match=f"There is no checkpoint at '{name}'"):
            call(path)


def test_missing_files_below_a_prefix_of_ours(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run `make setup`"):
        check_checkpoint("atss_d2://pretrained/mobilenet_v2.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": [1]}, "has a list as 'model', not a dict of weights"),
        ({"model": {"a": 1}}, "is not a dict of weights: 'a' is a int$"),
        ({"meta": {}, "state_dict": {}}, "'meta' is a dict; .* loaded by mmdet://FILE"),
        (
            {"model": {"module.rpn.head.cls_logits.weight": torch.zeros(2)}},
            "nothing in '.*' fits the model: it has module.rpn.head.cls_logits.weight, the model "
            r"has bottom_up.stem.conv1.weight, .* and \d more; the authors' .* by authors://FILE",
        ),
        ({"model": {}}, "nothing in '.*' fits the model: it has no weights"),
    ],
)
def test_files_of_other_content(tmp_path, model, content, message):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"'{tmp_path}/a.pth'") as error:
        SafeCheckpointer(model).load(str(tmp_path / "a.pth"))
    error.match(message)


def test_missing_keys_are_warnings(tmp_path, model, caplog):
    SafeCheckpointer(model).load(str(detectron2_zoo(tmp_path)))
    assert "fpn_lateral2" in caplog.text
    assert "stem.fc" in caplog.text


@pytest.mark.parametrize("heuristics", [True, False])
def test_other_shapes_are_errors(tmp_path, model, heuristics):
    prefix = "" if heuristics else "bottom_up."
    state = {
        f"{prefix}stem.conv1.weight": torch.zeros(4, 1, 3, 3),
        f"{prefix}res2.0.conv1.weight": torch.zeros(BLOCK),
    }
    torch.save({"model": state, "matching_heuristics": heuristics}, tmp_path / "a.pth")
    message = (
        r"does not fit the model: bottom_up.stem.conv1.weight is \(4, 1, 3, 3\) there and "
        r"\(4, 3, 3, 3\) here; take the config"
    )
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    for load in (checkpointer.load, checkpointer.resume_or_load):
        with pytest.raises(CheckpointError, match=message):
            load(str(tmp_path / "a.pth"))


def test_only_an_equal_model_is_resumed(tmp_path, model):
    checkpointer = SafeCheckpointer(model, str(tmp_path))
    checkpointer.save("whole")
    assert checkpointer.resume_or_load("", resume=True) == {}
    state = dict(model.state_dict())
    del state["fpn_lateral2.bias"]
    for content, message in (
        (state, "the file lacks fpn_lateral2.bias"),
        ({**model.state_dict(), "more": torch.zeros(1)}, "the model lacks more"),
        ({**state, "fpn_lateral2.bias": torch.zeros(5)}, r"fpn_lateral2.bias is \(5,\) there"),
    ):
        torch.save({"model": content}, tmp_path / "whole.pth")
        with pytest.raises(CheckpointError, match=message):
            checkpointer.resume_or_load("", resume=True)
        if "lacks" in message:  # elsewhere a warning
            checkpointer.load(str(tmp_path / "whole.pth"))
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    with pytest.raises(CheckpointError, match=r"last_checkpoint' names 'gone.pth', which is not"):
        checkpointer.resume_or_load("", resume=True)


# Where it is used


class Shell:
    """Pickled as a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def train_lazily(path: Path, folder: Path, resume: bool) -> None:
    do_train(toy.config(folder, **{"train.init_checkpoint": str(path)}), resume=resume)


def train_by_yaml(path: Path, folder: Path, resume: bool) -> None:
    (folder / "toy.yaml").write_text(toy.yaml_config(folder))
    cfg = load_config(folder / "toy.yaml")
    cfg.merge_from_list(["MODEL.WEIGHTS", str(path), "MODEL.DEVICE", "cpu"])
    Trainer(cfg).resume_or_load(resume=resume)


def predict(path: Path, folder: Path, resume: bool) -> None:
    Predictor(toy.config(folder), path)


def evaluate(path: Path, folder: Path, resume: bool) -> None:
    config_file = toy.write_config(folder / "config.py", folder)
    argv = ["--config-file", str(config_file), "--eval-only", f"train.init_checkpoint={path}"]
    argv[2:2] = ["--resume"] * resume
    args = train_net.get_parser().parse_args(argv)
    train_net.run_lazy(train_net.setup(args), args)


@pytest.mark.parametrize(
    ("use", "resume", "suffix"),
    [
        (train_lazily, False, ".pth"),
        (train_lazily, True, ".pkl"),
        (train_by_yaml, False, ".pkl"),
        (train_by_yaml, True, ".pth"),
        (predict, False, ".pkl"),
        (evaluate, False, ".pth"),
        (evaluate, True, ".pkl"),
    ],
)
def test_hostile_files_are_refused_wherever_weights_are_loaded(
    toy_data, tmp_path, suffix, use, resume
):
    sentinel, path = tmp_path / "sentinel", tmp_path / f"hostile{suffix}"
    content = {"model": {"a": Shell(f"touch {sentinel}")}, "__author__": "someone"}
    if suffix == ".pkl":
        write_pickle(path, content)
    else:
        torch.save(content, path)
    if resume:
        (tmp_path / "last_checkpoint").write_text(path.name)
    with pytest.raises(CheckpointError, match=f"'{path}' is refused; .*system"):
        use(path, tmp_path, resume)
    assert not sentinel.exists()
