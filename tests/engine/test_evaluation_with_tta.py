"""Evaluation without and with test-time augmentation, by do_test and by train_net.py."""

import json
import logging
from pathlib import Path

import pytest
from detectron2.config import LazyCall as L

from atss_d2 import DenseDetectorWithTTA
from atss_d2.commands import train as train_net
from atss_d2.engine import build_model, do_test, load_weights
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

# The toy config tests at a shorter side of 96.
ONE_PASS = dict(min_sizes=[96], flip=False, merge="nms")
PASSES = dict(min_sizes=[64, 96], merge="vote")


@pytest.fixture(scope="module", autouse=True)
def logger_as_before():
    yield
    # What main() does to the logger would hide messages from later tests.
    logger = logging.getLogger("atss_d2")
    logger.handlers.clear()
    logger.propagate = True


@pytest.fixture(scope="module")
def weights(toy_data, whole_runs) -> str:
    return str(whole_runs().output_dir / "model_final.pth")


def config(output_dir: Path, **options):
    cfg = toy.config(output_dir)
    cfg.test_time_augmentation = L(DenseDetectorWithTTA)(**options)
    return cfg


def load(cfg, weights):
    model = build_model(cfg)
    load_weights(model, weights)
    return model


def read_detections(folder: Path) -> list[dict]:
    return json.loads((folder / "coco_instances_results.json").read_text())


def parse(*argv):
    return train_net.get_parser().parse_args([str(arg) for arg in argv])


def test_one_pass_gives_the_plain_results(tmp_path, weights):
    cfg = config(tmp_path, **ONE_PASS)
    results = do_test(cfg, load(cfg, weights), with_tta=True)
    assert set(results) == {"bbox", "bbox_TTA"}
    assert results["bbox"]["AP50"] > 0
    assert results["bbox_TTA"] == pytest.approx(results["bbox"], nan_ok=True)
    plain, with_tta = (read_detections(tmp_path / f"inference{x}") for x in ("", "_TTA"))
    assert len(plain) == len(with_tta) > 0
    for a, b in zip(plain, with_tta, strict=True):
        assert a["score"] == pytest.approx(b["score"])


def test_several_passes_are_evaluated_beside_the_plain_model(tmp_path, weights):
    cfg = config(tmp_path, **PASSES)
    model = load(cfg, weights)
    results = do_test(cfg, model, with_tta=True)
    assert model.training  # as it was
    expected = do_test(cfg, model)
    assert results["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)
    assert set(expected) == {"bbox"}
    found = read_detections(tmp_path / "inference_TTA")
    scores = sorted(d["score"] for d in found)
    assert scores != sorted(d["score"] for d in read_detections(tmp_path / "inference"))


def test_without_the_key(tmp_path, weights):
    cfg = toy.config(tmp_path)
    cfg.test_time_augmentation = None  # as when it is absent
    assert set(do_test(cfg, load(cfg, weights), with_tta=True)) == {"bbox"}
    assert not (tmp_path / "inference_TTA").exists()


def test_mistakes_are_found_before_the_evaluation(tmp_path):
    cfg = config(tmp_path, merge="vot")
    with pytest.raises(ValueError, match="merge must be one of"):
        do_test(cfg, build_model(cfg), with_tta=True)
    assert not (tmp_path / "inference").exists()


def test_training_evaluates_at_one_scale(tmp_path):
    run = toy.Run(tmp_path, **{"train.max_iter": 1, "train.eval_period": 1})
    run.cfg.test_time_augmentation = L(DenseDetectorWithTTA)(**PASSES)
    run.train()
    assert set(run.results) == {"bbox"}
    assert not (run.output_dir / "inference_TTA").exists()


def test_train_net(tmp_path, weights):
    config_file = tmp_path / "config.py"
    toy.write_config(config_file, tmp_path / "output")
    with config_file.open("a") as f:
        f.write("from detectron2.config import LazyCall as L\n")
        f.write("from atss_d2 import DenseDetectorWithTTA\n")
        f.write("test_time_augmentation = L(DenseDetectorWithTTA)(min_sizes=[64])\n")
    override = "test_time_augmentation.min_sizes=[96]"
    overrides = [f"train.init_checkpoint={weights}", override, "test_time_augmentation.merge=nms"]
    args = parse("--config-file", config_file, "--eval-only", *overrides)
    args.opts.append("test_time_augmentation.flip=False")
    results = train_net.run(args)
    assert results["bbox"]["AP50"] > 0
    assert results["bbox_TTA"] == pytest.approx(results["bbox"], nan_ok=True)
    log = (tmp_path / "output/log.txt").read_text()
    assert "copypaste: Task: bbox\n" in log
    assert "copypaste: Task: bbox_TTA\n" in log
    # The saved config holds the key as well.
    args = parse("--config-file", tmp_path / "output/config.yaml", "--eval-only", override)
    assert set(train_net.run(args)) == {"bbox", "bbox_TTA"}

    with pytest.raises(SystemExit) as exit_info:
        train_net.setup(parse("--config-file", config_file, "test_time_augmentation.mrge=nms"))
    assert "did you mean test_time_augmentation.merge" in exit_info.value.code


@pytest.mark.parametrize("enabled", [False, True])
def test_train_net_with_yaml(tmp_path, weights, enabled):
    output_dir = tmp_path / "output"
    (tmp_path / "toy.yaml").write_text(toy.yaml_config(output_dir))
    args = ["--config-file", tmp_path / "toy.yaml", "--eval-only", "MODEL.WEIGHTS", weights]
    aug = {"ENABLED": enabled, "MIN_SIZES": "(96,)", "MAX_SIZE": 1333, "FLIP": False}
    for name, value in aug.items():
        args += [f"TEST.AUG.{name}", value]
    results = train_net.run(parse(*args))
    assert results["bbox"]["AP50"] > 0
    assert set(results) == ({"bbox", "bbox_TTA"} if enabled else {"bbox"})
    assert (output_dir / "inference_TTA").exists() == enabled
    if enabled:
        # One pass, merged at another IoU than that of the model's own NMS.
        assert results["bbox_TTA"]["AP50"] == pytest.approx(results["bbox"]["AP50"], abs=10)
        assert "copypaste: Task: bbox" in (output_dir / "log.txt").read_text()
