"""TOOD trained, interrupted in its warm-up, and in micro-batches: the iteration decides."""

import argparse
from pathlib import Path

import pytest
from detectron2.config import LazyCall as L

from atss_d2.config import load_config
from atss_d2.engine import Trainer, do_train
from atss_d2.engine.fast_dev_run import apply_fast_dev_run
from atss_d2.modeling import ATSSMatcher, TaskAlignedCriterion, TaskAlignedMatcher, TOODHead
from atss_d2.modeling.box_coding import PointDistances
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

WARM_UP, MAX_ITER = 4, 6
SHORT = {
    "train.max_iter": MAX_ITER,
    "train.checkpointer.period": 2,
    "train.eval_period": 0,
    "train.ema": {"enabled": True, "decay": 0.9},
}


def tood_run(folder, **overrides):
    """A run of the toy config with TOOD's parts."""
    run = toy.Run(folder, **{**SHORT, **overrides})
    model = run.cfg.model
    model.head.update(_target_=TOODHead, conv_dims=[toy.CHANNELS] * 2)
    model.head.anchor_offset = "${..anchor_generator.offset}"
    model.box2box_transform = L(PointDistances)(anchor_scale=4, clamp=False)
    model.matcher = L(TaskAlignedMatcher)(
        warm_up=L(ATSSMatcher)(topk=9), warm_up_iterations=WARM_UP
    )
    model.criterion = L(TaskAlignedCriterion)()
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tood_run(tmp_path_factory.mktemp("whole")).train()


def test_soft_targets_begin_after_the_warm_up(whole):
    for i in range(MAX_ITER):
        scalars = whole.metrics[i]
        assert ("atss/sum_soft" in scalars) == (i >= WARM_UP)
        assert {"loss_cls", "loss_box_reg", "total_loss"} <= scalars.keys()
        assert not any("centerness" in key for key in scalars)


def test_a_run_resumed_in_the_warm_up_equals_the_uninterrupted_one(tmp_path, whole):
    run = tood_run(tmp_path).train(fail_at=3)
    assert (run.output_dir / "last_checkpoint").read_text() == "model_0000001.pth"
    run.forget().train(resume=True, seed=1)
    assert min(run.seen) == 2
    toy.assert_equal(run.checkpoint(), whole.checkpoint())
    assert "trained_model" in run.checkpoint()  # beside the average
    for name in ("loss_cls", "loss_box_reg"):
        found, expected = ([x.metrics[i][name] for i in range(MAX_ITER)] for x in (run, whole))
        assert found == expected


def test_micro_batches_in_both_phases(tmp_path):
    """Each has normalizers of its own, since labels need the predictions."""
    run = tood_run(tmp_path, **{"train.accumulate": 2, "train.max_iter": WARM_UP + 1})
    do_train(run.cfg)
    assert all("loss_cls" in run.metrics[i] for i in range(WARM_UP + 1))
    assert "atss/sum_soft" in run.metrics[WARM_UP]


def test_a_warm_up_that_never_ends_is_told(tmp_path, caplog):
    """As when the lines of the paper's config are put into that of a short training."""
    run = tood_run(tmp_path / "lazy", **{"train.max_iter": WARM_UP})
    do_train(run.cfg)
    (record,) = [x for x in caplog.records if "TaskAlignedMatcher" in x.message]
    assert record.message.startswith(
        "TaskAlignedMatcher never selects samples: model.matcher.warm_up_iterations is 4, but there"
    )
    caplog.clear()
    (tmp_path / "toy.yaml").write_text(toy.yaml_config(tmp_path / "yaml"))
    cfg = load_config(tmp_path / "toy.yaml")
    cfg.MODEL.DEVICE = "cpu"
    node = cfg.MODEL.ATSS
    node.HEAD.NAME, node.CRITERION.NAME = "TOODHead", "TaskAlignedCriterion"
    node.TOOD_HEAD.CONV_DIMS = [toy.CHANNELS] * 2
    node.MATCHER.NAME, node.TASK_ALIGNED_MATCHER.WARM_UP_ITERATIONS = "TaskAlignedMatcher", 30000
    node.BOX_CODER = "PointDistances"
    node.POINT_DISTANCES.CLAMP, node.POINT_DISTANCES.ANCHOR_SCALE = False, 4.0
    Trainer(cfg)
    key = "MODEL.ATSS.TASK_ALIGNED_MATCHER.WARM_UP_ITERATIONS"
    assert f"{key} is 30000, but there are only 6 iterations" in caplog.text


def test_a_dev_run_has_both_phases(tmp_path):
    run = tood_run(tmp_path, **{"train.fast_dev_run": 2, "train.ema.enabled": False})
    run.cfg.model.matcher.warm_up_iterations = 30000
    apply_fast_dev_run(run.cfg, argparse.Namespace(eval_only=False))
    do_train(run.cfg)
    metrics = toy.read_metrics(Path(run.cfg.train.output_dir))
    assert ["atss/sum_soft" in metrics[i] for i in range(2)] == [False, True]
