"""The losses on the test set, which leave no trace in the training."""

import os
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from atss_d2.config import ConfigError
from atss_d2.engine.rng import random_states
from atss_d2.engine.validation_loss import _with_annotations, validation_losses
from tests import rcnn_models, toy
from tests.engine.test_tood_runs import WARM_UP, tood_run

KEYS = {"train.max_iter": 4, "train.eval_period": 2, "train.checkpointer.period": 2}
ON = {"train.validation_loss": {"enabled": True}}
EMA = {"train.ema": {"enabled": True, "decay": 0.9}}


@pytest.mark.usefixtures("toy_data")
def test_the_training_does_not_notice(tmp_path):
    run = toy.Run(tmp_path, **KEYS, **EMA, **ON)
    run.cfg.model._target_ = toy.NoisyATSS
    run.train()
    (tmp_path / "plain").mkdir()
    plain = toy.Run(tmp_path / "plain", **KEYS, **EMA)
    plain.cfg.model._target_ = toy.NoisyATSS
    plain.train()
    for name in ("model_0000001", "model_final"):
        found, expected = run.checkpoint(name), plain.checkpoint(name)
        for key in ("model", "trained_model"):
            toy.assert_equal(found[key], expected[key])
        toy.assert_equal(found["trainer"]["optimizer"], expected["trainer"]["optimizer"])
    for iteration in range(4):
        assert run.metrics[iteration]["total_loss"] == plain.metrics[iteration]["total_loss"]
    names = {"total", "cls", "box_reg", "centerness"}
    assert {k for k in run.metrics[1] if k.startswith("validation/")} == {
        f"validation/{name}" for name in names
    }
    assert run.results["validation"].keys() == names


@pytest.mark.usefixtures("toy_data")
def test_values(tmp_path):
    """Each image alone, with the norms in evaluation mode."""
    run = toy.Run(tmp_path)
    torch.manual_seed(0)
    model = instantiate(run.cfg.model)
    model.backbone.norm.running_mean += 0.1
    found = validation_losses(run.cfg, model)
    assert model.training
    cfg = run.cfg.copy()
    cfg.dataloader.test.mapper.is_train = True
    model.eval()
    model.training = True
    sums = {}
    for batch in instantiate(cfg.dataloader.test):
        with torch.no_grad(), EventStorage():
            for name, loss in model(batch).items():
                sums[name] = sums.get(name, 0) + float(loss) / toy.NUM_IMAGES["toy_val"]
    expected = {name.removeprefix("loss_"): value for name, value in sums.items()}
    assert found == pytest.approx({"total": sum(sums.values()), **expected})


@pytest.mark.usefixtures("toy_data")
def test_a_test_set_without_annotations(tmp_path):
    run = toy.Run(tmp_path)
    model = instantiate(run.cfg.model)
    run.cfg.dataloader.test.dataset = [
        {"file_name": str(path)}
        for path in sorted(Path(os.environ["TOY_DATA"]).glob("toy_val*.png"))
    ]
    with pytest.raises(ConfigError, match=r"needs annotations, and '.*toy_val_0.png'"):
        validation_losses(run.cfg, model)


@pytest.mark.usefixtures("toy_data")
def test_outside_training_nothing_is_a_warm_up(tmp_path):
    """Within it, the losses are those of the iteration: also of the first one."""
    run = tood_run(tmp_path)
    torch.manual_seed(0)
    model = instantiate(run.cfg.model)
    found = validation_losses(run.cfg, model)
    for iteration, is_over in ((0, False), (WARM_UP - 1, False), (WARM_UP, True)):
        with EventStorage(iteration):
            assert (validation_losses(run.cfg, model) == found) == is_over


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize("kind", ["mask_rcnn_fpn", "cascade_rcnn"])
def test_r_cnns(tmp_path, kind):
    """What is sampled depends on nothing but the image; nothing of the training changes."""
    cfg = toy.config(tmp_path)
    node = rcnn_models.rcnn_config(kind)
    node.roi_heads.num_classes = 2
    cfg.model = OmegaConf.merge(node, {"pixel_std": [57.0, 57.0, 57.0]})
    model = rcnn_models.build(cfg.model)
    modes = [module.training for module in model.modules()]
    before = random_states()
    found = validation_losses(cfg, model)
    toy.assert_equal(random_states(), before)
    assert [module.training for module in model.modules()] == modes
    torch.rand(7)
    assert validation_losses(cfg, model) == found
    cfg.dataloader.test.mapper.is_train = True
    sums = {}
    for (image,) in instantiate(cfg.dataloader.test):
        with torch.no_grad():  # the model has no layers that differ in training
            for name, loss in rcnn_models.losses_of(model, [image], seed=0).items():
                sums[name] = sums.get(name, 0) + float(loss) / toy.NUM_IMAGES["toy_val"]
    assert min(sums.values()) > 0
    expected = {name.removeprefix("loss_"): value for name, value in sums.items()}
    assert found == pytest.approx({"total": sum(sums.values()), **expected})


class WithoutLosses(toy.RecordingATSS):
    """Returns detections in training too, as a model that asks another part than ours does."""

    def forward(self, batched_inputs):
        return []


@pytest.mark.usefixtures("toy_data")
def test_a_model_without_losses(tmp_path):
    cfg = toy.config(tmp_path)
    cfg.model._target_ = WithoutLosses
    with pytest.raises(ConfigError, match="WithoutLosses returns none: set train.validation_loss"):
        validation_losses(cfg, instantiate(cfg.model))


def test_masks_and_keypoints_are_kept(tmp_path):
    cfg = toy.config(tmp_path)
    options = {"use_instance_mask": True, "use_keypoint": True, "keypoint_hflip_indices": [1, 0]}
    cfg.dataloader.train.mapper.update(options)
    mapper = _with_annotations(cfg).mapper
    assert {key: mapper[key] for key in options} == options
