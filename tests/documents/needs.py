"""What a document takes for granted: data, images, and checkpoints of somebody else."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable

import torch
from omegaconf import DictConfig

from atss_d2 import get_config
from atss_d2.engine import build_model
from atss_d2.engine.nonfinite import Step, StepRecorder
from atss_d2.engine.rng import random_states
from tests import detector
from tests import foreign_checkpoints as foreign
from tests.documents.blocks import read
from tests.documents.checkout import Checkout

_BY_HAND = 'get_config("custom/atss_mobilenetv2")'


def prepare(checkout: Checkout, document: str) -> None:
    """Puts into a checkout what the blocks of a document need."""
    for add in NEEDS.get(document, ()):
        add(checkout)


def _repository(checkout: Checkout) -> None:
    """A repository to clone, with what ``make`` reads."""
    folder = checkout.folder.parent / "repository"
    folder.mkdir()
    (folder / "Makefile").write_text((checkout.folder / "Makefile").read_text())
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "First"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def _demo_model(checkout: Checkout) -> None:
    """``output/demo/model_final.pth`` of a detector that finds something everywhere."""
    cfg = get_config("demo/atss_mobilenetv2_trees")
    _save(checkout, cfg, "output/demo/model_final.pth", [{"id": 1, "name": "tree"}])


def _shapes_model(checkout: Checkout) -> None:
    cfg = get_config("demo/atss_mobilenetv2_shapes_wide_tta")
    _save(checkout, cfg, "output/shapes/model_final.pth")


def _coco_model(checkout: Checkout) -> None:
    _save(checkout, get_config("coco/atss_R_50_FPN_1x"), "output/model_final.pth")


def _model_of_80_classes(checkout: Checkout) -> None:
    _save(checkout, get_config("coco/atss_R_50_FPN_1x"), "atss_R_50_80_classes.pth")


def _save(
    checkout: Checkout, cfg: DictConfig, name: str, categories: list[dict] | None = None
) -> None:
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.constant_(model.head.cls_score.bias, 3.0)
    path = checkout.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"model": model.state_dict()}
    torch.save(content | ({"categories": categories} if categories else {}), path)


def _authors_weights(checkout: Checkout) -> None:
    torch.save({"model": foreign.authors()}, checkout.folder / "ATSS_R_50_FPN_1x.pth")


def _mmdet_weights(checkout: Checkout) -> None:
    path = checkout.folder / "atss_r50_fpn_1x_coco.pth"
    torch.save({"state_dict": foreign.mmdet()}, path)
    gfl = foreign.mmdet(class_predictor="gfl_cls", predictors=[("gfl_reg", 68)])
    torch.save({"state_dict": gfl}, checkout.folder / "gfl_r50_fpn_1x_coco.pth")
    dyhead = foreign.mmdet(dyhead_blocks=6, tower_length=0)
    torch.save({"state_dict": dyhead}, checkout.folder / "atss_r50_fpn_dyhead_4x4_1x_coco.pth")
    (checkout.folder / "paa_r50_fpn_1x_coco.pth").symlink_to(path)
    # What is downloaded from the address in docs/checkpoints.md.
    cached = checkout.cache / "mmdetection/v2.0/atss/atss_r50_fpn_1x_coco"
    cached.mkdir(parents=True)
    (cached / "atss_r50_fpn_1x_coco_20200209-985f7bd0.pth").symlink_to(path)


def _own_configs(checkout: Checkout) -> None:
    """``my_config.py`` and ``my_config.yaml`` of an R-50 for other classes."""
    (text,) = [x.text for x in read("docs/custom_dataset.md") if _BY_HAND in x.text]
    text = text.replace(_BY_HAND, 'get_config("custom/atss_R_50")')
    (checkout.folder / "my_config.py").write_text(text)
    (checkout.folder / "my_config.yaml").write_text(
        "_BASE_: configs/yaml/atss_R_50_FPN_1x.yaml\n"
        "MODEL: {ATSS: {NUM_CLASSES: 6}}\n"
        "DATASETS: {TRAIN: [shapes_train], TEST: [shapes_val]}\n"
    )


def _bad_step(checkout: Checkout) -> None:
    """``stopped/nonfinite_0000002`` of an image without boxes."""
    cfg = get_config("demo/atss_mobilenetv2_trees")
    model = build_model(cfg)
    step = Step(2, [detector.image()], {"loss_cls": math.nan}, math.nan, random_states())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    StepRecorder(cfg, str(checkout.folder / "stopped"))(step, model, optimizer)


NEEDS: dict[str, tuple[Callable[[Checkout], None], ...]] = {
    "README.md": (Checkout.add_photographs, _repository, _coco_model),
    "docs/quality.md": (Checkout.add_coco, Checkout.add_r50),
    "docs/ablations.md": (Checkout.add_coco, Checkout.add_r50, _demo_model, _shapes_model),
    "docs/checkpoints.md": (
        Checkout.add_coco,
        Checkout.add_own_data,
        Checkout.add_r50,
        _authors_weights,
        _mmdet_weights,
        _model_of_80_classes,
        _own_configs,
    ),
    "docs/custom_dataset.md": (Checkout.add_own_data, Checkout.add_r50),
    "docs/deployment.md": (Checkout.add_photographs, _demo_model),
    "docs/prediction.md": (Checkout.add_photographs, _demo_model),
    "docs/training.md": (Checkout.add_coco, Checkout.add_r50, _bad_step),
}
