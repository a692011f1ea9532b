"""R-CNNs with our RPN in our trainer: they train, evaluate, and resume to the last bit."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from omegaconf import OmegaConf

from atss_d2.config import view_of
from atss_d2.engine import build_model, do_train
from atss_d2.engine.data_check import check_categories
from atss_d2.engine.models import check_warm_up
from atss_d2.modeling import ATSSMatcher, TaskAlignedMatcher
from tests import rcnn_models, toy

pytestmark = pytest.mark.usefixtures("toy_data")


class FailAt(HookBase):
    """Ends a run with an error."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise toy.ToyError("as the test wants it")


def config(output_dir, *, focal):
    cfg = toy.config(output_dir, **{"train.max_iter": 4, "train.eval_period": 0})
    cfg.train.checkpointer.period = 2
    cfg.optimizer.lr = 0.002
    model = rcnn_models.with_atss(rcnn_models.rcnn_config(), focal=focal)
    model.roi_heads.num_classes = 2
    cfg.model = OmegaConf.merge(model, {"pixel_std": [57.0, 57.0, 57.0]})
    return cfg


@pytest.mark.parametrize("focal", [False, True], ids=["sampled", "focal"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, focal):
    seed_all_rng(0)  # of the initialization, as train_net.py does
    results = do_train(config(tmp_path / "whole", focal=focal))
    cfg = config(tmp_path / "interrupted", focal=focal)
    cfg.train.hooks = [L(FailAt)(iteration=3)]
    seed_all_rng(0)
    with pytest.raises(toy.ToyError):
        do_train(cfg)
    cfg.train.hooks = []
    seed_all_rng(7)
    again = do_train(cfg, resume=True)
    assert again["bbox"] == pytest.approx(results["bbox"], nan_ok=True, rel=0, abs=0)
    models = [
        torch.load(tmp_path / name / "model_final.pth", weights_only=False)["model"]
        for name in ("whole", "interrupted")
    ]
    toy.assert_equal(*models)
    metrics = toy.read_metrics(tmp_path / "whole")
    assert "atss/rpn_num_positives" in metrics[3]
    assert ("loss_rpn_iou" in metrics[3]) == focal


def test_the_number_of_classes_is_that_of_the_second_stage(tmp_path):
    cfg = config(tmp_path, focal=False)
    assert view_of(cfg).num_classes == 2
    cfg.model.roi_heads.num_classes = 3
    with pytest.raises(ValueError, match="set model.roi_heads.num_classes=2"):
        check_categories(cfg)


def test_a_warm_up_that_never_ends_is_told(tmp_path, caplog):
    cfg = config(tmp_path, focal=True)
    key = "model.proposal_generator.anchor_matcher.warm_up_iterations"
    cfg.model.proposal_generator.anchor_matcher = L(TaskAlignedMatcher)(
        warm_up=L(ATSSMatcher)(topk=9), warm_up_iterations=4
    )
    check_warm_up(cfg, build_model(cfg))
    assert f"{key} is 4, but there are only 4 iterations" in caplog.text


def test_compiled_parts_give_the_same(tmp_path):
    cfg = config(tmp_path, focal=True)
    cfg.train.compile = {"enabled": True, "backend": "eager"}
    model = build_model(cfg)
    for part in (model.backbone, model.proposal_generator.rpn_head):
        assert part._compiled_call_impl is not None
    cfg.train.compile.enabled = False
    plain = build_model(cfg)
    plain.load_state_dict(model.state_dict())
    images = [rcnn_models.image([[6, 5, 40, 44]])]
    torch.testing.assert_close(
        rcnn_models.losses_of(model, images), rcnn_models.losses_of(plain, images)
    )
