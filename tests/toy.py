"""A detector, a data set and a config so small that training runs take a second.

Configs name what is in here, so it is a module that commands run by tests can import as well.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone
from detectron2.solver import WarmupParamScheduler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import get_event_storage, has_event_storage
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import DictConfig, OmegaConf
from torch import nn

from atss_d2 import ATSS, get_config
from atss_d2.config import load_config
from atss_d2.engine import Trainer, do_train

KEYS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
NUM_IMAGES = {"toy_train": 10, "toy_val": 4}
CLASSES = ("bright", "dark")
CHANNELS = 32


class ToyBackbone(Backbone):
    """Two maps, of strides 8 and 16."""

    def __init__(self, *, norm: str = "BN") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, kernel_size=8, stride=8)
        self.norm = get_norm(norm, CHANNELS)  # BN has buffers, which an average must follow
        self._out_features = ["p3", "p4"]
        self._out_feature_channels = {"p3": CHANNELS, "p4": CHANNELS}
        self._out_feature_strides = {"p3": 8, "p4": 16}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.norm(self.conv(x)).relu()
        return {"p3": x, "p4": nn.functional.max_pool2d(x, 2)}

    @property
    def size_divisibility(self) -> int:
        return 16


@BACKBONE_REGISTRY.register()
def build_toy_backbone(cfg, input_shape) -> Backbone:
    return ToyBackbone()


class ToyError(Exception):
    """An error of the training that a test asked for."""


class RecordingATSS(ATSS):
    """Appends the images of every iteration to the file ``$TOY_SEEN.<rank>``.

    In iteration ``$TOY_FAIL_AT`` raises an error, in ``$TOY_KILL_AT`` kills its process; in the
    evaluation after ``$TOY_KILL_EVALUATION_AT`` as well. In the iterations ``$TOY_NAN_AT``, "3,4",
    ``loss_cls`` of the process ``$TOY_NAN_RANK``, by default any, is NaN; in
    ``$TOY_NAN_GRADIENT_AT`` only the gradient is.
    """

    def forward(self, batched_inputs):
        if self.training:
            iteration = get_event_storage().iter
            names = [os.path.basename(x["file_name"]) for x in batched_inputs]
            if "TOY_SEEN" in os.environ:
                with open(f"{os.environ['TOY_SEEN']}.{comm.get_rank()}", "a") as f:
                    f.write(json.dumps([iteration, names]) + "\n")
            if iteration == int(os.environ.get("TOY_FAIL_AT", -1)):
                raise ToyError(f"in iteration {iteration}, as the test wants it")
            if iteration == int(os.environ.get("TOY_KILL_AT", -1)):
                os.kill(os.getpid(), signal.SIGKILL)
        elif has_event_storage() and (
            get_event_storage().iter == int(os.environ.get("TOY_KILL_EVALUATION_AT", -1))
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        outputs = super().forward(batched_inputs)
        if self.training:
            if _is_time("TOY_NAN_AT", iteration):
                outputs["loss_cls"] = outputs["loss_cls"] * float("nan")
            if _is_time("TOY_NAN_GRADIENT_AT", iteration):
                weight = self.head.cls_score.weight.flatten()[0]
                outputs["loss_cls"] = outputs["loss_cls"] + (weight - weight.detach()).sqrt()
        return outputs


def _is_time(name: str, iteration: int) -> bool:
    is_rank = os.environ.get("TOY_NAN_RANK", str(comm.get_rank())) == str(comm.get_rank())
    return is_rank and str(iteration) in os.environ.get(name, "").split(",")


@META_ARCH_REGISTRY.register()
class NoisyATSS(RecordingATSS):
    """Draws from the global generators in every training step, as dropout does."""

    def forward(self, batched_inputs):
        if self.training:
            factor = 0.9 + 0.1 * torch.rand(1) + 0.1 * np.random.rand()  # noqa: NPY002
            batched_inputs = [{**x, "image": x["image"] * factor} for x in batched_inputs]
        return super().forward(batched_inputs)


def seen_images(path: Path, rank: int = 0) -> dict[int, list[str]]:
    """Iteration -> file names, as recorded in ``$TOY_SEEN``; of repeated iterations the last."""
    lines = Path(f"{path}.{rank}").read_text().splitlines()
    return dict(map(json.loads, lines))


def read_metrics(output_dir: Path) -> dict[int, dict[str, float]]:
    """Iteration -> all scalars of ``metrics.json``; of repeated iterations the last."""
    metrics: dict[int, dict[str, float]] = {}
    for line in (Path(output_dir) / "metrics.json").read_text().splitlines():
        scalars = json.loads(line)
        metrics.setdefault(scalars["iteration"], {}).update(scalars)
    return metrics


def write_dataset(folder: Path) -> None:
    """Draws squares on gray, one a picture and class by its brightness, and registers them."""
    rng = np.random.default_rng(0)
    for name, num in NUM_IMAGES.items():
        images, annotations = [], []
        for index in range(num):
            # Numbers 0, 3, 6, 9 are portraits.
            height, width = (128, 96) if index % 3 == 0 else (96, 128)
            picture = rng.integers(110, 140, (height, width, 3)).astype(np.uint8)
            side, label = int(rng.integers(28, 40)), index % 2
            x, y = int(rng.integers(width - side)), int(rng.integers(height - side))
            picture[y : y + side, x : x + side] = 20 if label else 240
            file_name = f"{name}_{index}.png"
            cv2.imwrite(str(folder / file_name), picture)
            images.append({"id": index, "file_name": file_name, "height": height, "width": width})
            annotations.append(
                {
                    "id": index + 1,
                    "image_id": index,
                    "category_id": label + 1,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        categories = [{"id": i + 1, "name": label} for i, label in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))
    os.environ["TOY_DATA"] = str(folder)
    register_dataset(folder)


def register_dataset(folder: Path) -> None:
    """Registers ``toy_train`` and ``toy_val``; a second call moves them."""
    for name in NUM_IMAGES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        json_file = str(Path(folder) / f"{name}.json")
        DatasetCatalog.register(
            name, lambda name=name, json_file=json_file: load_coco_json(json_file, folder, name)
        )
        MetadataCatalog.get(name).set(
            json_file=json_file, evaluator_type="coco", thing_classes=list(CLASSES)
        )


if "TOY_DATA" in os.environ:  # in a command that a test runs
    register_dataset(Path(os.environ["TOY_DATA"]))


def kill_when_writing(name: str) -> None:
    """Kills this process when it opens a file for writing, or is about to move a new one there."""

    def kill(event: str, arguments: tuple) -> None:
        if event == "os.rename":
            path = arguments[1]
        elif event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]:
            path = arguments[0]
        else:
            return
        if os.path.basename(str(path)) == name:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)


def die_when_a_file_grows(limit: int) -> None:
    """Lets the kernel end this process in the middle of a write, when a file has so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def prepare_death() -> None:
    """Arranges for the end that ``$TOY_KILL_WRITING`` or ``$TOY_FILE_LIMIT`` asks for."""
    if "TOY_KILL_WRITING" in os.environ:
        kill_when_writing(os.environ["TOY_KILL_WRITING"])
    if "TOY_FILE_LIMIT" in os.environ:
        die_when_a_file_grows(int(os.environ["TOY_FILE_LIMIT"]))


prepare_death()


def config(output_dir: Path, *, is_augmented: bool = False, **overrides: object) -> DictConfig:
    """The paper's recipe, made small; more keys may be set by ``**{"train.seed": 1}``.

    With ``is_augmented``, images are augmented at random.
    """
    cfg = get_config("coco/atss_R_50_FPN_1x")
    cfg.model._target_ = RecordingATSS
    cfg.model.backbone = L(ToyBackbone)()
    cfg.model.num_classes = len(CLASSES)
    cfg.model.head.update(input_shape=[ShapeSpec(channels=CHANNELS)] * 2, conv_dims=[CHANNELS])
    cfg.model.anchor_generator.update(sizes=[[32], [64]], strides=[8, 16])
    cfg.model.head_in_features = ["p3", "p4"]
    cfg.model.pixel_std = [57.0, 57.0, 57.0]
    cfg.dataloader.train.dataset.names = "toy_train"
    cfg.dataloader.train.mapper.augmentations = []
    if is_augmented:
        cfg.dataloader.train.mapper.augmentations = [
            L(T.RandomFlip)(),
            L(T.RandomBrightness)(intensity_min=0.7, intensity_max=1.3),
            L(T.RandomCrop)(crop_type="relative_range", crop_size=[0.8, 0.8]),
            # One size: padding depends on the other images of a process.
            L(T.Resize)(shape=[96, 96]),
        ]
    cfg.dataloader.train.update(total_batch_size=2, num_workers=0)
    cfg.dataloader.test.dataset.names = "toy_val"
    cfg.dataloader.test.mapper.augmentations[0].short_edge_length = 96
    cfg.dataloader.test.num_workers = 0
    cfg.optimizer.lr = 0.02
    # Another learning rate in every iteration.
    cfg.lr_multiplier = L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
        warmup_length=0.3,
        warmup_method="linear",
        warmup_factor=0.1,
    )
    cfg.train.update(
        output_dir=str(output_dir), init_checkpoint="", max_iter=12, log_period=1, eval_period=6
    )
    cfg.train.checkpointer.period = 4
    for key, value in overrides.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def in_killed_process(function: Callable[[], object], **environment: object) -> None:
    """Calls a function in a copy of this process, which the function kills.

    Args:
        function: What is called.
        **environment: Variables such as ``TOY_KILL_AT``.
    """
    if torch.cuda.is_available():
        pytest.skip("a GPU cannot be used in a copy of a process")
    pid = os.fork()
    if pid == 0:
        os.environ.update({name: str(value) for name, value in environment.items()})
        try:
            function()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def write_config(path: Path, output_dir: Path, **arguments: object) -> Path:
    """Writes a config file that gives :func:`config`."""
    path.write_text(
        "from tests import toy\n\n"
        f"_cfg = toy.config({str(output_dir)!r}, **{arguments})\n"
        f"{', '.join(KEYS)} = (_cfg[key] for key in toy.KEYS)\n"
    )
    return path


def yaml_config(output_dir: Path) -> str:
    """The same in Detectron2's yaml keys."""
    return f"""
MODEL:
  META_ARCHITECTURE: ATSS
  BACKBONE: {{NAME: build_toy_backbone}}
  ANCHOR_GENERATOR: {{SIZES: [[32], [64]], ASPECT_RATIOS: [[1.0]], OFFSET: 0.5}}
  PIXEL_STD: [57.0, 57.0, 57.0]
  ATSS: {{NUM_CLASSES: {len(CLASSES)}, HEAD: {{CONV_DIMS: [{CHANNELS}]}}}}
INPUT: {{MIN_SIZE_TRAIN: [96], MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 1333}}
DATASETS: {{TRAIN: [toy_train], TEST: [toy_val]}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, BASE_LR: 0.02, MAX_ITER: 6, CHECKPOINT_PERIOD: 3, STEPS: []}}
TEST: {{EVAL_PERIOD: 3}}
OUTPUT_DIR: {output_dir}
VERSION: 2
"""


def write_yaml_script(folder: Path, output_dir: Path) -> tuple[Path, Path]:
    """Writes a script that registers the data set and trains, and the yaml config for it."""
    script, config_file = folder / "train_toy.py", folder / "toy.yaml"
    script.write_text(
        "from atss_d2_cli import run\nfrom tests import toy\n\n"
        'if __name__ == "__main__":\n    run("train")\n'
    )
    config_file.write_text(yaml_config(output_dir))
    return script, config_file


def assert_equal(found: object, expected: object) -> None:
    """Compares all that is in two checkpoints, bit by bit."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(found, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_equal(one, other)
    elif isinstance(found, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected or found != found  # NaN, of a metric without a box


class Run:
    """A training run of the toy config in a folder, and what it left there."""

    def __init__(self, folder: Path, **overrides) -> None:
        self.folder = folder
        self.output_dir = folder / "output"
        self.cfg = config(self.output_dir, **overrides)
        self.results: dict = {}

    def train(self, *, resume: bool = False, fail_at: int | None = None, seed: int = 0) -> "Run":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOY_SEEN", str(self.folder / "seen"))
            if fail_at is not None:
                patch.setenv("TOY_FAIL_AT", str(fail_at))
            seed_all_rng(seed)
            if fail_at is None:
                self.results = do_train(self.cfg, resume=resume)
            else:
                with pytest.raises(ToyError):
                    do_train(self.cfg, resume=resume)
        return self

    @property
    def seen(self) -> dict[int, list[str]]:
        return seen_images(self.folder / "seen")

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        return read_metrics(self.output_dir)

    def rates(self) -> list[float]:
        return [self.metrics[i]["lr"] for i in range(self.cfg.train.max_iter)]

    def checkpoint(self, name: str = "model_final") -> dict:
        return torch.load(self.output_dir / f"{name}.pth")

    def forget(self) -> "Run":
        """Forgets the images of earlier iterations."""
        (self.folder / "seen.0").write_text("")
        return self


class YamlRun:
    """The same for :func:`yaml_config`, with images of random sizes and :class:`NoisyATSS`."""

    def __init__(self, folder: Path, *overrides) -> None:
        self.folder = folder
        self.output_dir = folder / "output"
        folder.mkdir(exist_ok=True)
        (folder / "toy.yaml").write_text(yaml_config(self.output_dir))
        self.cfg = load_config(folder / "toy.yaml")
        own = ["MODEL.DEVICE", "cpu", "SEED", 3, "MODEL.META_ARCHITECTURE", "NoisyATSS"]
        own += ["INPUT.MIN_SIZE_TRAIN", (80, 96, 112)]
        self.cfg.merge_from_list([*own, *overrides])

    def train(self, *, resume: bool = False, fail_at: int | None = None, seed: int = 0) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOY_SEEN", str(self.folder / "seen"))
            if fail_at is not None:
                patch.setenv("TOY_FAIL_AT", str(fail_at))
            seed_all_rng(seed)
            trainer = Trainer(self.cfg)
            trainer.resume_or_load(resume=resume)
            if fail_at is None:
                trainer.train()
            else:
                with pytest.raises(ToyError):
                    trainer.train()

    def checkpoint(self) -> dict:
        return torch.load(self.output_dir / "model_final.pth")
