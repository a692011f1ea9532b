"""A fresh checkout with data, where what a document shows is run as a person would run it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling.backbone.resnet import BasicStem, ResNet

from atss_d2.data import dataset_root
from tests.documents.blocks import ROOT
from tests.drawn_set import draw_set, write_set

PARTS = (
    "ablations",
    "atss_d2",
    "benchmarks",
    "configs",
    "docs",
    "examples",
    "reproduction",
    "tools",
    "atss_d2_cli.py",
    "train_net.py",
    "Makefile",
    "README.md",
)
_NUM_SHAPES = 2  # images of each set of shapes, instead of up to 400
EMBEDDED = ("pretrained", "shapes", "trees")  # what `make setup` leaves in the folder of data sets
R_50 = "detectron2/ImageNetPretrained/MSRA/R-50.pkl"


class Checkout:
    """A copy of this checkout in a new folder.

    Commands find the embedded data sets, a tiny COCO, and in Detectron2's cache a backbone of the
    right shape with random weights. They reach no network.

    Attributes:
        folder: The copy.
        datasets: ``$DETECTRON2_DATASETS``.
        cache: ``$FVCORE_CACHE``, where Detectron2 keeps downloads.
        environment: Of its commands.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "atss_d2"
        self.datasets = folder / "datasets"
        self.cache = folder / "cache"
        self.folder.mkdir(parents=True)
        for name in PARTS:
            source, target = ROOT / name, self.folder / name
            if source.is_dir():
                shutil.copytree(source, target)  # with times: compiled files stay valid
            else:
                shutil.copy2(source, target)
        self.datasets.mkdir()
        self._link_embedded_data()
        dropped = ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "DISPLAY", "TOY_DATA")
        self.environment = {name: x for name, x in os.environ.items() if name not in dropped} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DETECTRON2_DATASETS": str(self.datasets),
            "FVCORE_CACHE": str(self.cache),
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
            "PIP_NO_INDEX": "1",
            **{f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")},
        }

    def _link_embedded_data(self) -> None:
        root = dataset_root().resolve()
        for name in ("pretrained", "trees"):
            (self.datasets / name).symlink_to(root / name)
        shapes = self.datasets / "shapes"
        (shapes / "annotations").mkdir(parents=True)
        (shapes / "images").symlink_to(root / "shapes" / "images")
        for path in (root / "shapes" / "annotations").glob("*.json"):
            content = json.loads(path.read_text())
            content["images"] = content["images"][:_NUM_SHAPES]
            ids = {image["id"] for image in content["images"]}
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
            write_json(shapes / "annotations" / path.name, content)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command, with an interpreter of its own."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )

    # What documents take for granted

    def add_coco(self) -> None:
        """COCO 2017 with the real categories: two images to train, one to evaluate."""
        for split, num, seed in (("train", 2, 0), ("val", 1, 1)):
            folder = self.datasets / "coco"
            content = write_set(folder, num, seed=seed, name=f"instances_{split}2017")
            ids = {3: 1, 7: 44, 40: 90}  # of the drawn set -> person, bottle, toothbrush
            for annotation in content["annotations"]:
                annotation["category_id"] = ids[annotation["category_id"]]
            content["categories"] = [
                {"id": x["id"], "name": x["name"]} for x in COCO_CATEGORIES if x["isthing"]
            ]
            (folder / "images").rename(folder / f"{split}2017")
            (folder / f"instances_{split}2017.json").unlink()
            write_json(folder / "annotations" / f"instances_{split}2017.json", content)

    def add_r50(self) -> None:
        """The R-50 that recipes start from, as a download leaves it; its weights are random."""
        torch.manual_seed(0)
        resnet = ResNet(
            BasicStem(norm="FrozenBN"), ResNet.make_default_stages(50, stride_in_1x1=True)
        )
        weights = {name: value.numpy() for name, value in resnet.state_dict().items()}
        for name in weights:  # else frozen norms let the signal explode
            if name.endswith("conv3.norm.weight"):
                weights[name] *= 0.1
        weights["stem.conv1.norm.weight"] /= 57
        content = {"model": weights, "__author__": "a test", "matching_heuristics": True}
        path = self.cache / R_50
        path.parent.mkdir(parents=True)
        path.write_bytes(pickle.dumps(content))

    def add_own_data(self) -> None:
        """``data/train.json``, ``data/val.json`` and ``data/images`` of a person: three classes."""
        write_set(self.folder / "data", 12)
        (self.folder / "data" / "images").rename(self.folder / "data" / "training")
        write_set(self.folder / "data", 4, seed=1, name="val")
        images, training = self.folder / "data" / "images", self.folder / "data" / "training"
        for path in images.iterdir():
            path.rename(images / f"val_{path.name}")
        for path in training.iterdir():
            path.rename(images / path.name)
        training.rmdir()
        val = self.folder / "data" / "val.json"
        val.write_text(val.read_text().replace('"file_name": "', '"file_name": "val_'))

    def add_photographs(self) -> None:
        """``street.jpg``, ``photo.jpg``, and two drawn images each in ``photos`` and ``folder``."""
        draw_set(self.folder / "photos", 2, suffix=".png")
        draw_set(self.folder / "folder", 2, seed=1)
        draw_set(self.folder, 2, seed=2)
        for old, new in (("0000.jpg", "street.jpg"), ("0001.jpg", "photo.jpg")):
            (self.folder / old).rename(self.folder / new)


def write_json(path: Path, content: object) -> None:
    """Makes the folder as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
