"""The canary: derived numbers, bounds, findings before training, and pretended trainings."""

import json
import math
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

import atss_d2
from reproduction import bounds, canary, set_up, theory
from reproduction.faults import FAULTS
from reproduction.set_up import Facts, findings, look_at

CONFIG = "demo/atss_mobilenetv2_shapes"
HEALTHY = Facts((10, 20, 30, 5, 5, 5), 0.0, 0.1, 0.9, (290, 290))
# Stands for train_net.py: writes the rows in $ROWS, then waits with a child of its own.
FAKE = """
import json, os, subprocess, sys, time
folder = [x.split("=")[1] for x in sys.argv if x.startswith("train.output_dir=")][0]
assert "train.eval_period=0" in sys.argv
child = subprocess.Popen(["sleep", "60"])
open(os.environ["PIDS"], "w").write(f"{os.getpid()} {child.pid}")
with open(f"{folder}/metrics.json", "w") as f:
    for row in json.load(open(os.environ["ROWS"])):
        f.write(json.dumps(row) + "\\n")
if "DIE" in os.environ:
    child.kill()
    sys.exit("train_net.py: " + os.environ["DIE"])
open(f"{folder}/model_0000060.pth", "w")
time.sleep(60)
"""


def healthy_rows():
    """Rows in the middle of the measured bounds, with the planned learning rate."""
    multiplier = canary.instantiate(atss_d2.get_config(CONFIG).lr_multiplier)
    values = json.loads(bounds.MEASURED.read_text())[CONFIG]["values"]
    rows = []
    for i in range(61):
        row = {"iteration": i, "lr": 1e-3 * multiplier(i / 700), "time": 0.5, "data_time": 0.01}
        for name, at in values.items():
            nearest = min(at, key=lambda x: abs(int(x) - i))
            row[name] = sum(at[nearest]) / 2
        if i <= 5:
            row.update(loss_cls=1.1, loss_box_reg=1.2, loss_centerness=0.693)
        rows.append({**row, "total_loss": sum(row[name] for name in bounds.LOSSES)})
    return rows


@pytest.fixture
def sing(tmp_path, monkeypatch):
    """Runs the canary over the given rows; no process is left behind."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setenv("ROWS", str(tmp_path / "rows.json"))
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    monkeypatch.setattr(canary, "look_at", lambda cfg: HEALTHY)

    def run(rows, overrides=(), **options):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        options = {"train_net": script, "iterations": 61, "say": lambda line: None, **options}
        verdict = canary.sing(CONFIG, overrides, tmp_path / "out", **options)
        if (tmp_path / "pids").exists():
            for pid in map(int, (tmp_path / "pids").read_text().split()):
                assert _is_over(pid), pid
        return verdict

    return run


def _is_over(pid):
    """Returns whether a process has ended, or is about to be forgotten by its new parent."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if " Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_the_theory_by_hand():
    # One positive among 1001 logits: 0.25 x 0.99^2 x 4.605 + 1000 x 0.75 x 0.01^2 x 0.01005.
    assert theory.focal_loss_of_constant(0.01, 1001) == pytest.approx(1.12838 + 0.000754, abs=1e-4)
    for logits in (50, 1e4, 1e6):
        blind, score = theory.blind_focal_loss(logits)
        assert blind <= theory.focal_loss_of_constant(0.01, logits)
        assert blind == theory.focal_loss_of_constant(score, logits)
        # No constant nearby is better.
        assert blind <= min(theory.focal_loss_of_constant(score * f, logits) for f in (0.9, 1.1))
    assert math.log(2) == theory.BLIND_CENTERNESS


def test_a_bound_says_what_broke_it():
    bound = bounds.Bound("loss_cls", 10, 20, 0.5, 1.0, "measured on 6 seeds", "it diverges")
    assert bound.broken_by({"iteration": 15, "loss_cls": 0.7}) is None
    assert bound.broken_by({"iteration": 9, "loss_cls": 7.0}) is None
    assert bound.broken_by({"iteration": 15}) is None
    assert bound.broken_by({"iteration": 20, "loss_cls": 1.25}) == (
        "iteration 20: loss_cls 1.25 is above 1 (measured on 6 seeds): it diverges"
    )
    assert "not a number" in bound.broken_by({"iteration": 10, "loss_cls": math.nan})


def test_a_recipe_on_coco_must_beat_a_blind_head():
    cfg = atss_d2.get_config("coco/atss_R_50_FPN_1x")
    start = {"iteration": 0, "loss_cls": 1.15, "loss_box_reg": 1.1, "loss_centerness": 0.69}
    start |= {"total_loss": 2.9, bounds.POSITIVES: 60.0}
    found = bounds.derived(cfg, start, logits=22400 * 80, iterations=500)

    def broken(row):
        return [x for x in (bound.broken_by(row) for bound in found) if x]

    assert broken(start) == []
    learned = {**start, "iteration": 499, "loss_cls": 0.8, "loss_box_reg": 0.7}
    assert broken(learned) == []
    (blind,) = broken({**learned, "loss_cls": 1.08})
    assert "were the pretrained weights loaded?" in blind
    (boxes,) = broken({**learned, "loss_box_reg": 1.05})
    assert "it must fall" in boxes
    assert broken({**start, "loss_cls": 2.5})
    assert broken({**start, "total_loss": math.inf})
    # Of a criterion of one's own, only that it stays finite is known.
    cfg.model.criterion = {"_target_": "torch.nn.Identity"}
    assert len(bounds.derived(cfg, start, logits=10, iterations=500)) == 2


def test_a_healthy_training_passes_and_leaves_no_weights(sing):
    verdict = sing(healthy_rows())
    assert verdict.complaints == []
    assert len(verdict.rows) == 61
    assert verdict.notes == ["0.5 s an iteration, 2 % of it waits for data"]
    assert not list(verdict.folder.glob("*.pth"))
    assert sing(healthy_rows()).folder != verdict.folder


def test_numbers_that_come_an_iteration_late_from_a_gpu(sing):
    rows = healthy_rows()
    late = (bounds.POSITIVES, bounds.GRADIENT)
    for row, before in reversed(list(zip(rows[1:], rows))):
        row.update({name: before[name] for name in late})
    for name in late:
        del rows[0][name]
    assert sing(rows).complaints == []
    rows[0]["loss_cls"] = 3.0  # found as soon as the positives are known
    verdict = sing(rows)
    assert len(verdict.rows) == 2
    assert verdict.complaints[0].startswith("iteration 0: loss_cls 3 is above")


@pytest.mark.parametrize(
    ("name", "factor", "message"),
    [
        ("loss_cls", 2.0, "loss_cls .* is above"),
        ("loss_box_reg", 0.2, "loss_box_reg .* is below"),
        ("lr", 2.0, "the learning rate is .*, not .* as the schedule says"),
        (bounds.GRADIENT, math.nan, "gradient_norm nan is not a number"),
        (bounds.POSITIVES, 3.0, "num_positives .* is above"),
    ],
)
def test_the_first_broken_bound_ends_the_training(sing, name, factor, message):
    rows = healthy_rows()
    rows[30][name] *= factor
    verdict = sing(rows)
    assert len(verdict.rows) == 31
    assert verdict.complaints[0].startswith("iteration 30: ")
    assert re.search(message, verdict.complaints[0])


def test_a_training_that_fails_is_heard(sing, monkeypatch):
    monkeypatch.setenv("DIE", "gt_classes must be 0 to 5, got 6")
    verdict = sing(healthy_rows()[:7])
    (complaint,) = verdict.complaints
    assert complaint.startswith("the training ended after 7 iterations (exit code 1): train_net.py")
    assert "gt_classes must be 0 to 5, got 6" in complaint


def test_a_finding_before_training_saves_the_training(sing, tmp_path):
    verdict = sing([], ["train.init_checkpoint="])
    assert not (tmp_path / "pids").exists()
    assert verdict.folder is None
    assert not (tmp_path / "out").exists()
    (complaint,) = verdict.complaints
    assert complaint.startswith("set-up: train.init_checkpoint is empty")
    assert len(sing(healthy_rows(), ["train.init_checkpoint="], keep_going=True).rows) == 61


def test_a_data_set_that_cannot_be_loaded(sing, monkeypatch):
    def look_at(cfg):
        raise AssertionError("Got an invalid category_id=6 for a dataset of 6 classes")

    monkeypatch.setattr(canary, "look_at", look_at)
    (complaint,) = sing([], keep_going=True).complaints
    assert complaint.startswith("set-up: ")
    assert "category_id=6" in complaint


@pytest.mark.parametrize(
    ("overrides", "facts", "message"),
    [
        ([], {}, None),
        (["optimizer.lr=0.02"], {}, "20 times the recipe's rate per image"),
        (["dataloader.train.total_batch_size=1"], {}, "to optimizer.lr=0.00025"),
        (["dataloader.train.total_batch_size=8", "optimizer.lr=0.002"], {}, None),
        ([], {"class_counts": (0, 5, 5, 5, 5, 5)}, "do the data set's classes count from 1"),
        ([], {"class_counts": (0, 0, 5, 5, 5, 5)}, None),  # rare classes may be missing
        ([], {"outside": 0.4}, "40 % of the training boxes leave their image"),
        ([], {"pixel_std": 57.0}, "standard deviation of 57, not 0.4 to 1.8"),
        ([], {"pixel_mean": 2.0}, "have a mean of 2, not about 0"),
        (["train.init_checkpoint="], {}, "FrozenBN does not train without them"),
    ],
)
def test_findings(overrides, facts, message):
    cfg = atss_d2.config.apply_overrides(atss_d2.get_config(CONFIG), overrides)
    found = list(findings(cfg, replace(HEALTHY, **facts), CONFIG))
    assert len(found) == (message is not None), found
    assert message is None or message in found[0]


def test_the_embedded_data_has_no_findings(monkeypatch):
    monkeypatch.setattr(set_up, "_NUM_IMAGES", 6)
    cfg = atss_d2.get_config("demo/atss_mobilenetv2_trees")
    facts = look_at(cfg)
    assert sum(facts.class_counts) > 100
    assert list(findings(cfg, facts, "demo/atss_mobilenetv2_trees")) == []
    cfg.model.pixel_std = [1.0, 1.0, 1.0]
    (found,) = findings(cfg, look_at(cfg), "demo/atss_mobilenetv2_trees")
    assert "check model.pixel_std" in found


def test_every_fault_is_an_override_or_a_fault_of_the_data():
    cfg = atss_d2.get_config(CONFIG)
    for overrides, of_data in FAULTS.values():
        if of_data is None:
            atss_d2.config.apply_overrides(cfg.copy(), overrides)
        assert overrides or of_data
