"""Freezing and learning rates by patterns of names."""

import pytest
import torch

from atss_d2.checkpoint import CheckpointError
from atss_d2.config import ConfigError
from tests import toy

KEYS = {"train.max_iter": 3, "train.eval_period": 0, "train.checkpointer.period": 1}


@pytest.mark.usefixtures("toy_data")
def test_frozen_weights_and_statistics_stay(tmp_path):
    run = toy.Run(tmp_path, **KEYS, **{"train.freeze": ["backbone", "head.*_subnet.0.weight"]})
    run.train()
    first, last = (run.checkpoint(name)["model"] for name in ("model_0000000", "model_final"))
    same = {name for name in last if torch.equal(first[name], last[name])}
    expected = {name for name in last if name.startswith("backbone.")}
    assert same == expected | {"head.cls_subnet.0.weight", "head.bbox_subnet.0.weight"}
    assert (last["backbone.norm.running_mean"] == 0).all()  # not even once


@pytest.mark.usefixtures("toy_data")
def test_rates_of_the_recipe(tmp_path):
    """Whose biases learn at twice the rate."""
    factors = [["backbone", 0.1], ["head", 0.5], ["head.cls_score.bias", 1.0]]
    run = toy.Run(tmp_path, **KEYS, **{"train.lr_factors": factors}).train()
    groups = run.checkpoint()["trainer"]["optimizer"]["param_groups"]
    assert sorted(group["initial_lr"] for group in groups) == pytest.approx(
        [0.002, 0.004, 0.01, 0.02, 0.04]
    )
    sizes = {round(group["initial_lr"], 6): len(group["params"]) for group in groups}
    assert sizes[0.002] == 2  # conv and norm of the backbone
    assert sizes[0.004] == 2  # their biases
    assert sizes[0.04] == 1
    run.train(resume=True)
    run.cfg.train.lr_factors = []
    run.cfg.train.max_iter = 4
    with pytest.raises(CheckpointError, match=r"another optimizer, train.freeze or train.lr_fac"):
        run.train(resume=True)


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train.freeze": ["backbon"]}, "train.freeze has 'backbon', .* backbone.conv, backbone.n"),
        ({"train.freeze": ["*"]}, "leaves no parameter to train"),
        (
            {"train.lr_factors": [["neck.*", 0.1]]},
            "train.lr_factors has 'neck.*', which matches no",
        ),
        ({"train.lr_factors": [["head", 0]]}, "has .'head', 0., which is not a pair"),
        ({"train.lr_factors": ["head"]}, "has head, which is not a pair"),
    ],
)
def test_patterns_that_do_nothing(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        toy.Run(tmp_path, **KEYS, **options).train()
