import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.solver.build import get_default_optimizer_params
from torch import nn

from atss_d2.engine import BackboneLRFactor


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Conv2d(1, 1, 1)
        self.backbone.fpn = nn.Conv2d(1, 1, 1)
        self.head = nn.Conv2d(1, 1, 1)


def test_part_of_the_model_learns_more_slowly():
    slow = ["backbone.bottom_up.weight", "backbone.bottom_up.bias"]
    model = Detector()
    cfg = L(torch.optim.AdamW)(
        params=L(get_default_optimizer_params)(
            model=model, base_lr=0.1, lr_factor_func=L(BackboneLRFactor)(factor=0.25)
        ),
        lr=0.1,
    )
    rates = {p: group["lr"] for group in instantiate(cfg).param_groups for p in group["params"]}
    found = {name: rates[p] for name, p in model.named_parameters()}
    assert found == pytest.approx({name: 0.025 if name in slow else 0.1 for name in found})
