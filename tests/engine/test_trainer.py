"""Training runs of a toy detector, whole and interrupted."""

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.env import seed_all_rng
from omegaconf import OmegaConf

from atss_d2.engine import build_model, do_test, do_train, load_weights, resolve_device
from tests import toy

FAIL_AT = 7  # after the checkpoint of iteration 3, before that of iteration 7 is written
MAX_ITER = 12


@pytest.fixture(scope="module", autouse=True)
def toy_data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_DATA", "")  # restored afterwards
        toy.write_dataset(tmp_path_factory.mktemp("toy_data"))
        yield


class Run:
    """A training run and what it left behind."""

    def __init__(self, folder: Path, **overrides) -> None:
        self.folder = folder
        self.output_dir = folder / "output"
        self.cfg = toy.config(self.output_dir, **overrides)
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
                with pytest.raises(toy.ToyError):
                    do_train(self.cfg, resume=resume)
        return self

    @property
    def seen(self) -> dict[int, list[str]]:
        return toy.seen_images(self.folder / "seen")

    @property
    def metrics(self) -> dict[int, dict[str, float]]:
        return toy.read_metrics(self.output_dir)

    def rates(self) -> list[float]:
        return [self.metrics[i]["lr"] for i in range(MAX_ITER)]

    def checkpoint(self, name: str = "model_final") -> dict:
        return torch.load(self.output_dir / f"{name}.pth")

    def forget(self) -> "Run":
        """Forgets the images of earlier iterations."""
        (self.folder / "seen.0").write_text("")
        return self


EMA = {"train.ema": {"enabled": True, "decay": 0.9}}
UNGROUPED = {"dataloader.train.aspect_ratio_grouping": False}


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """Uninterrupted runs, by their overrides."""
    runs: dict[str, Run] = {}

    def get(**overrides) -> Run:
        key = json.dumps(overrides)
        if key not in runs:
            runs[key] = Run(tmp_path_factory.mktemp("whole"), **overrides).train()
        return runs[key]

    return get


# Outputs


def test_output_dir_holds_what_detectron2_users_expect(whole_runs):
    files = {path.name for path in whole_runs().output_dir.iterdir()}
    checkpoints = {f"model_{i:07d}.pth" for i in (3, 7, 11)} | {"model_final.pth"}
    assert files > checkpoints | {"last_checkpoint", "metrics.json", "inference"}
    assert any("tfevents" in name for name in files)
    run = whole_runs()
    assert (run.output_dir / "last_checkpoint").read_text() == "model_final.pth"
    detections = json.loads((run.output_dir / "inference/coco_instances_results.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= set(detections[0])


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


def test_the_final_checkpoint_gives_the_final_results(whole_runs):
    run = whole_runs()
    model = build_model(run.cfg)
    load_weights(model, str(run.output_dir / "model_final.pth"))
    assert do_test(run.cfg, model)["bbox"] == pytest.approx(run.results["bbox"], nan_ok=True)


def test_the_config_is_not_changed(whole_runs):
    run = whole_runs()
    expected = OmegaConf.to_container(toy.config(run.output_dir))
    assert OmegaConf.to_container(run.cfg) == expected


def test_without_an_evaluator(tmp_path):
    run = Run(tmp_path, **{"dataloader.evaluator": None, "train.max_iter": 1}).train()
    assert run.results == {}
    assert (run.output_dir / "model_final.pth").is_file()


# Resuming


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"dataloader.train.num_workers": 2},
        UNGROUPED,
        {**UNGROUPED, "dataloader.train.num_workers": 2},
        EMA,
    ],
    ids=["grouped", "grouped-2-workers", "any-order", "any-order-2-workers", "ema"],
)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, whole_runs, overrides):
    same_order = {k: v for k, v in overrides.items() if k != "dataloader.train.num_workers"}
    whole = whole_runs(**same_order)
    run = Run(tmp_path, **overrides).train(fail_at=FAIL_AT)
    assert (run.output_dir / "last_checkpoint").read_text() == "model_0000003.pth"
    # Another seed: what was random in the first part is in the checkpoint.
    run.forget().train(resume=True, seed=1)
    assert run.seen == {i: whole.seen[i] for i in range(4, MAX_ITER)}
    assert run.rates() == whole.rates()
    resumed, expected = run.checkpoint(), whole.checkpoint()
    torch.testing.assert_close(resumed["model"], expected["model"], rtol=1e-6, atol=1e-6)
    states = [c["trainer"]["optimizer"]["state"] for c in (resumed, expected)]
    torch.testing.assert_close(*states, rtol=1e-6, atol=1e-6)
    assert run.results["bbox"] == pytest.approx(whole.results["bbox"], nan_ok=True)


def test_images_are_grouped_by_default(whole_runs):
    portraits = {f"toy_train_{i}.png" for i in (0, 3, 6, 9)}
    for names in whole_runs().seen.values():
        assert len({name in portraits for name in names}) == 1
    assert whole_runs().seen != whole_runs(**UNGROUPED).seen


def test_a_half_written_checkpoint_does_no_harm(tmp_path, whole_runs):
    run = Run(tmp_path).train(fail_at=FAIL_AT)
    whole_file = whole_runs().output_dir / "model_0000007.pth"
    (run.output_dir / "model_0000007.pth").write_bytes(whole_file.read_bytes()[:1000])
    run.forget().train(resume=True)
    assert min(run.seen) == 4
    torch.testing.assert_close(
        run.checkpoint("model_0000007")["model"], whole_runs().checkpoint("model_0000007")["model"]
    )


def test_resume_without_a_checkpoint_starts_at_zero(tmp_path, whole_runs):
    run = Run(tmp_path).train(resume=True)
    assert run.seen == whole_runs().seen


def test_without_resume_a_run_starts_at_zero(tmp_path, whole_runs):
    run = Run(tmp_path).train(fail_at=FAIL_AT).forget().train()
    assert run.seen == whole_runs().seen
    assert run.rates() == whole_runs().rates()


@pytest.mark.parametrize("overrides", [{}, EMA], ids=["plain", "ema"])
def test_resuming_after_the_end(tmp_path, overrides):
    run = Run(tmp_path, **{"train.max_iter": 4, **overrides}).train()
    results = run.results
    before = {path: path.read_bytes() for path in run.output_dir.glob("*.pth")}
    run.forget().train(resume=True)
    assert run.seen == {}
    assert {path: path.read_bytes() for path in run.output_dir.glob("*.pth")} == before
    assert (run.output_dir / "last_checkpoint").read_text() == "model_final.pth"
    assert run.results["bbox"] == pytest.approx(results["bbox"], nan_ok=True)

    run.cfg.train.max_iter = 6  # a longer run goes on
    run.train(resume=True)
    assert list(run.seen) == [4, 5]
    assert run.checkpoint()["iteration"] == 5
    run.cfg.train.max_iter = 2  # a shorter one is over
    run.forget().train(resume=True)
    assert run.seen == {}
    assert run.checkpoint()["iteration"] == 5


def test_a_missing_initial_checkpoint_is_named(tmp_path):
    run = Run(tmp_path, **{"train.init_checkpoint": "nowhere/R-50.pkl"})
    with pytest.raises(FileNotFoundError, match="no checkpoint at .nowhere/R-50"):
        run.train()
    run.cfg.train.init_checkpoint = ""
    run.cfg.train.max_iter = 4
    run.train()
    run.cfg.train.init_checkpoint = "nowhere/R-50.pkl"
    run.train(resume=True)  # which needs it no more


# Moving average


def test_checkpoints_hold_the_average_of_the_trained_weights(tmp_path):
    run = Run(tmp_path, **EMA, **{"train.checkpointer.period": 1, "train.max_iter": 5}).train()
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
    run = Run(tmp_path, **EMA, **overrides).train()
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
    run = Run(tmp_path, **EMA, **overrides).train(seed=1)
    expected = whole_runs().checkpoint()["model"]
    parameters = [name for name, _ in build_model(run.cfg).named_parameters()]
    for part in ("model", "trained_model"):
        weights = run.checkpoint()[part]
        for name in parameters:
            torch.testing.assert_close(weights[name], expected[name])


@pytest.mark.parametrize(("first", "then"), [({}, EMA), (EMA, {})], ids=["on", "off"])
def test_the_average_may_be_switched_when_a_run_is_resumed(tmp_path, first, then, whole_runs):
    run = Run(tmp_path, **first).train(fail_at=FAIL_AT)
    run.cfg = toy.config(run.output_dir, **then)
    run.forget().train(resume=True)
    assert list(run.seen) == list(range(4, MAX_ITER))
    assert ("trained_model" in run.checkpoint()) == bool(then)
    if then:  # training itself goes on as without the average
        expected = whole_runs().checkpoint()["model"]
        torch.testing.assert_close(run.checkpoint()["trained_model"], expected)


def test_wrong_decay_is_an_error_before_training(tmp_path):
    run = Run(tmp_path, **{"train.ema": {"enabled": True, "decay": 2}})
    with pytest.raises(ValueError, match="decay must be in"):
        run.train()


# Mixed precision, devices


def test_bfloat16_on_the_cpu(tmp_path, whole_runs):
    dtypes = []

    def record(module, args, output):
        if isinstance(module, torch.nn.Conv2d) and module.training:
            dtypes.append(output.dtype)

    amp = {"enabled": True, "dtype": "bfloat16"}
    run = Run(tmp_path, **{"train.amp": amp, "train.max_iter": 4})
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
    run = Run(tmp_path, **{"train.amp": {"enabled": True, "dtype": dtype}})
    run.cfg.train.device = "cpu"
    with pytest.raises(ValueError, match=message):
        run.train()
    assert not (tmp_path / "seen.0").exists()


@pytest.mark.parametrize(
    ("name", "has_gpu", "expected"),
    [
        ("cuda", False, "cpu"),
        ("cuda:1", False, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
        ("cuda:1", True, "cuda:1"),
    ],
)
def test_resolve_device(monkeypatch, name, has_gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert resolve_device(name) == expected


def test_loading_weights(tmp_path, whole_runs, caplog):
    run = whole_runs()
    expected = run.checkpoint()["model"]
    path = run.output_dir / "model_final.pth"
    for suffix in ("", "?matching_heuristics=True"):
        model = build_model(run.cfg)
        load_weights(model, f"{path}{suffix}")
        torch.testing.assert_close(dict(model.state_dict()), expected)
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at '.*/nowhere\.pth'"):
        load_weights(model, str(tmp_path / "nowhere.pth"))
    untouched = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.INFO):
        load_weights(model, "")
    torch.testing.assert_close(model.state_dict(), untouched)
