"""What a document takes for granted: data, images, and checkpoints of somebody else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import torch
from omegaconf import DictConfig

from atss_d2 import get_config
from atss_d2.engine import build_model
from tests import foreign_checkpoints as foreign
from tests.documents.checkout import Checkout


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
    torch.save({"state_dict": foreign.mmdet()}, checkout.folder / "atss_r50_fpn_1x_coco.pth")


def _own_configs(checkout: Checkout) -> None:
    """``my_config.py`` and ``my_config.yaml``, as docs/custom_dataset.md shows them."""


NEEDS: dict[str, tuple[Callable[[Checkout], None], ...]] = {
    "README.md": (
        Checkout.add_coco,
        Checkout.add_r50,
        Checkout.add_photographs,
        _repository,
        _demo_model,
        _authors_weights,
        _mmdet_weights,
    ),
    "docs/ablations.md": (Checkout.add_coco, Checkout.add_r50, _demo_model),
    "docs/checkpoints.md": (
        Checkout.add_coco,
        Checkout.add_own_data,
        _authors_weights,
        _mmdet_weights,
        _model_of_80_classes,
        _own_configs,
    ),
    "docs/custom_dataset.md": (Checkout.add_own_data, Checkout.add_r50),
    "docs/deployment.md": (Checkout.add_photographs, _demo_model),
    "docs/prediction.md": (Checkout.add_photographs, _demo_model),
}
