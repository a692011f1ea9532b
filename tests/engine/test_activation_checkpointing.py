"""Parts that are computed a second time give the same losses, gradients and statistics."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage

from atss_d2 import get_config
from atss_d2.config import ConfigError
from atss_d2.engine import activation_checkpointing
from atss_d2.engine.activation_checkpointing import checkpoint_activations
from tests import toy
from tests.detector import image

KEYS = {"train.max_iter": 3, "train.eval_period": 0, "train.ema": {"enabled": True, "decay": 0.9}}
ON = {"train.activation_checkpointing": {"enabled": True}}


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize("options", [{}, {"train.accumulate": 2}], ids=["plain", "accumulate"])
def test_a_run_is_the_same(tmp_path, whole_runs, options, monkeypatch):
    """Bit by bit, with BatchNorm in the backbone."""
    calls = []
    forward = toy.ToyBackbone.forward
    monkeypatch.setattr(
        toy.ToyBackbone, "forward", lambda *args: (calls.append(1), forward(*args))[1]
    )
    plain = whole_runs(**KEYS, **options)
    calls.clear()
    run = toy.Run(tmp_path, **KEYS, **ON, **options).train()
    num = 3 * options.get("train.accumulate", 1)
    assert len(calls) >= 2 * num
    found, expected = run.checkpoint(), plain.checkpoint()
    for key in ("model", "trained_model"):
        toy.assert_equal(found[key], expected[key])
    toy.assert_equal(found["trainer"]["optimizer"], expected["trainer"]["optimizer"])
    assert run.metrics[2]["total_loss"] == plain.metrics[2]["total_loss"]


@pytest.mark.usefixtures("toy_data")
def test_less_is_kept_for_the_backward_pass(tmp_path):
    def kept(options) -> int:
        cfg = toy.config(tmp_path, **options, **{"model.head.conv_dims": [toy.CHANNELS] * 8})
        torch.manual_seed(0)
        model = instantiate(cfg.model)
        checkpoint_activations(cfg, model)
        batch = next(iter(instantiate(cfg.dataloader.train)))
        sizes = {}
        with (
            EventStorage(),
            torch.autograd.graph.saved_tensors_hooks(
                lambda x: sizes.update({x.data_ptr(): x.nbytes}) or x, lambda x: x
            ),
        ):
            sum(model(batch).values())
        weights = {x.data_ptr() for x in model.parameters()}
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    assert kept(ON) < 0.5 * kept({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train.activation_checkpointing.parts": ["neck"]}, "parts has 'neck', which matches no"),
        ({"train.compile.enabled": True}, "exclude each other"),
    ],
)
def test_impossible_values(tmp_path, options, message):
    cfg = toy.config(tmp_path, **ON, **options)
    with pytest.raises(ConfigError, match=message):
        checkpoint_activations(cfg, torch.nn.Sequential(torch.nn.ReLU()))


@pytest.mark.parametrize("detector", ["atss_dyhead", "ddod", "gflv2", "tood", "vfnet"])
def test_detectors_with_other_heads_have_the_parts_of_their_configs(detector, monkeypatch):
    calls = []
    monkeypatch.setattr(
        activation_checkpointing,
        "checkpoint",
        lambda forward, *args, **_: (calls.append(forward.__self__), forward(*args))[1],
    )
    cfg = get_config(f"demo/{detector}_shapes_wide")
    cfg.train.activation_checkpointing.enabled = True
    model = instantiate(cfg.model)
    checkpoint_activations(cfg, model)
    with EventStorage():
        model([image([[8.0, 8, 40, 40]], [0])])
    of_head = [module for module in model.head.modules() if module in calls]
    assert of_head
    assert model.backbone in calls
