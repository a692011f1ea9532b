"""Training runs of a toy detector, and what is left behind."""

import json
import multiprocessing

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.env import seed_all_rng
from torch import nn

from atss_d2.config import ConfigError
from atss_d2.engine import build_model, do_test, load_weights, resolve_device
from atss_d2.engine.models import check_device
from atss_d2.modeling import ATSSMatcher
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

MAX_ITER = 12
EMA = {"train.ema": {"enabled": True, "decay": 0.9}}


# Outputs


def test_metrics(whole_runs):
    run = whole_runs()
    for i in range(MAX_ITER):
        scalars = run.metrics[i]
        losses = ["loss_cls", "loss_box_reg", "loss_centerness"]
        assert scalars["total_loss"] > 0
        assert {*losses, "lr", "atss/num_positives", "atss/mean_threshold"} <= set(scalars)
    evaluated = [i for i, scalars in run.metrics.items() if "bbox/AP" in scalars]
    assert evaluated == [5, 12]  # Detectron2 counts the last evaluation one further
    # What is returned are the results of the last evaluation.
    assert run.metrics[12]["bbox/AP50"] == pytest.approx(run.results["bbox"]["AP50"])
    assert run.results["bbox"]["AP50"] > 0


def test_learning_rate_follows_the_schedule(whole_runs):
    run = whole_runs()
    schedule = instantiate(run.cfg.lr_multiplier)
    expected = [0.02 * schedule(i / MAX_ITER) for i in range(MAX_ITER)]
    assert run.rates() == pytest.approx(expected)
    assert len(set(expected)) == MAX_ITER


# Moving average


def test_checkpoints_hold_the_average_of_the_trained_weights(tmp_path):
    run = toy.Run(tmp_path, **EMA, **{"train.checkpointer.period": 1, "train.max_iter": 5}).train()
    average = run.checkpoint("model_0000000")["trained_model"]
    for n in range(5):
        checkpoint = run.checkpoint(f"model_{n:07d}")
        decay = min(0.9, (1 + n) / (10 + n))
        for name, value in checkpoint["trained_model"].items():
            if n and value.is_floating_point():
                value = decay * average[name] + (1 - decay) * value
            average[name] = value
        torch.testing.assert_close(checkpoint["model"], average)
    torch.testing.assert_close(run.checkpoint()["model"], average)
    trained = run.checkpoint()["trained_model"]
    assert any((trained[name] != average[name]).any() for name in average)


def test_every_checkpoint_gives_the_results_of_its_iteration(tmp_path):
    overrides = {"train.eval_period": 8, "train.max_iter": 9, "optimizer.lr": 0.05}
    run = toy.Run(tmp_path, **EMA, **overrides).train()
    model = build_model(run.cfg)
    load_weights(model, str(run.output_dir / "model_0000007.pth"))
    results = do_test(run.cfg, model)["bbox"]
    assert results["AP50"] == pytest.approx(run.metrics[7]["bbox/AP50"])
    trained = run.checkpoint("model_0000007")["trained_model"]
    model.load_state_dict(trained)
    assert do_test(run.cfg, model)["bbox"]["AP50"] != pytest.approx(results["AP50"])


def test_the_average_begins_with_the_initial_checkpoint(tmp_path, whole_runs):
    path = str(whole_runs().output_dir / "model_final.pth")
    overrides = {"train.init_checkpoint": path, "train.max_iter": 1, "optimizer.lr": 0.0}
    run = toy.Run(tmp_path, **EMA, **overrides).train(seed=1)
    expected = whole_runs().checkpoint()["model"]
    parameters = [name for name, _ in build_model(run.cfg).named_parameters()]
    for part in ("model", "trained_model"):
        weights = run.checkpoint()[part]
        for name in parameters:
            torch.testing.assert_close(weights[name], expected[name])


@pytest.mark.parametrize("fail_at", [None, 1])
def test_no_process_of_the_loader_is_left(tmp_path, fail_at):
    before = multiprocessing.active_children()
    overrides = {"dataloader.train.num_workers": 2, "train.max_iter": 3}
    toy.Run(tmp_path, **overrides).train(fail_at=fail_at)
    assert multiprocessing.active_children() == before


# Speed and stability


def test_gradients_are_clipped(tmp_path):
    options = {"train.clip_gradients": {"enabled": True, "max_norm": 1e-9}, "train.max_iter": 1}
    run = toy.Run(tmp_path, **options, **{"optimizer.weight_decay": 0.0}).train()
    weights = run.checkpoint()["model"]
    seed_all_rng(0)  # as Run
    start = build_model(toy.config("nowhere")).named_parameters()
    assert all((weights[name] - p).abs().max() < 1e-9 for name, p in start)


def test_channels_last_gives_the_same(tmp_path, whole_runs):
    short = {**EMA, "train.max_iter": 3, "dataloader.evaluator": None}
    run = toy.Run(tmp_path, **short, **{"train.channels_last": True}).train()
    model = build_model(run.cfg)
    assert model.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last)
    expected = whole_runs(**short).checkpoint()["model"]
    torch.testing.assert_close(run.checkpoint()["model"], expected, rtol=1e-3, atol=1e-4)


def test_compiled_parts_give_the_same(tmp_path, whole_runs):
    options = {"train.max_iter": 2, "dataloader.evaluator": None}
    compiled = {**options, "train.compile": {"enabled": True, "backend": "eager"}}
    run = toy.Run(tmp_path, **compiled).train()
    assert run.results == {}
    model = build_model(run.cfg)
    for part in (model.backbone, model.head):
        assert part._compiled_call_impl is not None
    expected = whole_runs(**options).checkpoint()["model"]
    torch.testing.assert_close(run.checkpoint()["model"], expected, rtol=1e-3, atol=1e-4)
    assert build_model(whole_runs().cfg).backbone._compiled_call_impl is None


# Evaluation


def test_batches_do_not_change_the_results(tmp_path, whole_runs):
    """Of two portraits and two landscapes; padding would change what GroupNorm sees."""
    run = whole_runs()
    model = build_model(run.cfg)
    load_weights(model, str(run.output_dir / "model_final.pth"))
    shapes = []
    model.backbone.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    cfg = toy.config(tmp_path, **{"dataloader.test.batch_size": 3})
    assert do_test(cfg, model)["bbox"] == pytest.approx(run.results["bbox"], nan_ok=True)
    assert sorted(tuple(shape) for shape in shapes) == [(2, 3, 96, 128), (2, 3, 128, 96)]
    detections = [
        sorted(
            json.loads((folder / "inference/coco_instances_results.json").read_text()),
            key=lambda x: (x["image_id"], x["category_id"], -x["score"]),
        )
        for folder in (run.output_dir, tmp_path)
    ]
    for one, other in zip(*detections, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-3)


def test_evaluation_under_autocast(tmp_path, whole_runs):
    run = whole_runs()
    model = build_model(run.cfg)
    load_weights(model, str(run.output_dir / "model_final.pth"))
    dtypes = []
    model.backbone.conv.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    for amp, dtype in (
        ({"inference": True, "dtype": "bfloat16"}, torch.bfloat16),
        ({"enabled": True, "dtype": "bfloat16"}, torch.float32),  # of training alone
    ):
        dtypes.clear()
        results = do_test(toy.config(tmp_path, **{"train.amp": amp}), model)
        assert set(dtypes) == {dtype}
        assert results["bbox"]["AP50"] == pytest.approx(run.results["bbox"]["AP50"], abs=5)
    with pytest.raises(ValueError, match=r"train\.amp\.dtype must be .*float8"):
        do_test(
            toy.config(tmp_path, **{"train.amp": {"inference": True, "dtype": "float8"}}), model
        )


# Mixed precision, devices


def test_bfloat16_on_the_cpu(tmp_path, whole_runs):
    dtypes = []

    def record(module, args, output):
        if isinstance(module, torch.nn.Conv2d) and module.training:
            dtypes.append(output.dtype)

    amp = {"enabled": True, "dtype": "bfloat16"}
    run = toy.Run(tmp_path, **{"train.amp": amp, "train.max_iter": 4})
    handle = torch.nn.modules.module.register_module_forward_hook(record)
    try:
        run.train()
    finally:
        handle.remove()
    assert set(dtypes) == {torch.bfloat16}
    checkpoint = run.checkpoint()
    for name, value in checkpoint["model"].items():
        assert value.dtype == whole_runs().checkpoint()["model"][name].dtype
    # Nearly the same losses as in float32 in the first iteration.
    assert run.metrics[0]["total_loss"] == pytest.approx(
        whole_runs().metrics[0]["total_loss"], rel=0.02
    )


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("float16", "train.amp.dtype=float16 needs a GPU; on the CPU use train.amp.dtype=bfloat16"),
        ("half", 'train.amp.dtype must be "float16" or "bfloat16", got "half"'),
    ],
)
def test_impossible_precision_is_an_error_before_training(tmp_path, dtype, message):
    run = toy.Run(tmp_path, **{"train.amp": {"enabled": True, "dtype": dtype}})
    run.cfg.train.device = "cpu"
    with pytest.raises(ValueError, match=message):
        run.train()
    assert not (tmp_path / "seen.0").exists()


@pytest.mark.parametrize(
    ("name", "has_gpu", "expected"),
    [("cuda:1", False, "cpu"), ("cpu", False, "cpu"), ("cuda:1", True, "cuda:1")],
)
def test_resolve_device(monkeypatch, name, has_gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * has_gpu)
    assert resolve_device(name) == expected
    if has_gpu:
        with pytest.raises(ValueError, match="device is 'cuda:2', but this machine has 2: cuda:0"):
            resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["matcher", "anchor_matcher"])
@pytest.mark.parametrize("device", ["mps", "cpu"])
def test_training_does_not_begin_where_rules_cannot_select(device, name):
    model = nn.ModuleDict({"proposal_generator": nn.Module()})
    model.device = torch.device(device)
    check_device(model)
    setattr(model["proposal_generator"], name, ATSSMatcher())
    if device == "cpu":
        check_device(model)
        return
    with pytest.raises(ConfigError, match=r"does not run on the device 'mps'.*train.device=cpu"):
        check_device(model)
