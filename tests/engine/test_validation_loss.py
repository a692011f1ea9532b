"""The losses on the test set, which leave no trace in the training."""

import os
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage

from atss_d2.config import ConfigError
from atss_d2.engine.validation_loss import validation_losses
from tests import toy
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
