import pytest
import torch
from detectron2.config import instantiate

from atss_d2.config import ConfigError
from atss_d2.engine.train_loader import instantiate_train_loader
from tests import toy

KEYS = {"train.max_iter": 4, "train.eval_period": 2, "train.checkpointer.period": 2}
ON = {"train.precise_bn": {"enabled": True, "num_iter": 3}}


@pytest.mark.usefixtures("toy_data")
def test_statistics_are_exact_and_resumed(tmp_path, whole_runs):
    run = toy.Run(tmp_path, **KEYS, **ON).train()
    weights, plain = run.checkpoint()["model"], whole_runs(**KEYS).checkpoint()["model"]
    changed = {name for name in weights if not torch.equal(weights[name], plain[name])}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"backbone.norm.{name}" for name in buffers}
    model = instantiate(run.cfg.model)
    model.load_state_dict(weights)
    means = []
    hook = model.backbone.conv.register_forward_hook(
        lambda _, __, x: means.append(x.mean((0, 2, 3)))
    )
    batches = iter(instantiate_train_loader(run.cfg.dataloader.train, seed=0))
    with torch.no_grad():
        for _ in range(3):
            model.backbone(model.preprocess_image(next(batches)).tensor)
    hook.remove()
    torch.testing.assert_close(torch.stack(means).mean(0), weights["backbone.norm.running_mean"])
    (tmp_path / "other").mkdir()
    resumed = toy.Run(tmp_path / "other", **KEYS, **ON).train(fail_at=3).train(resume=True)
    toy.assert_equal(resumed.checkpoint()["model"], weights)


@pytest.mark.usefixtures("toy_data")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.backbone.norm": "GN"}, "the model has no BatchNorm that trains"),
        ({"train.ema.enabled": True}, "exclude each other"),
        ({"train.precise_bn.num_iter": 0}, "num_iter must be >= 1"),
    ],
)
def test_impossible_values(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        toy.Run(tmp_path, **KEYS, **ON, **options).train()
