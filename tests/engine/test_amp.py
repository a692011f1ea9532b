"""Loss scaling, and runs that change between float32 and float16 when they are resumed."""

import pytest
import torch
from torch import nn

from atss_d2.engine import EMAHook, NonFiniteError
from atss_d2.engine import trainer as module
from atss_d2.engine.amp import GradScaler
from atss_d2.engine.step import StepTrainer
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")


class RecordingScaler(GradScaler):
    """A gradient scaler on the CPU, which grows quickly."""

    def __init__(self):
        super().__init__("cpu", init_scale=2.0**8, growth_interval=3)
        self.scales = []

    def update(self):
        self.scales.append(self.get_scale())
        super().update()


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """``trained(scaler, max_iter)`` goes on with a run up to an iteration."""

    def run(scaler, max_iter, resume=True):
        monkeypatch.setattr(
            module,
            "_build_trainer",
            lambda cfg, model, optimizer: StepTrainer(model, None, optimizer, grad_scaler=scaler),
        )
        run = toy.Run(tmp_path, **{"train.max_iter": max_iter, "train.eval_period": 0})
        return run.train(resume=resume).checkpoint()

    return run


def scaler_warnings(caplog) -> list:
    return [x for x in caplog.records if "gradient scaler" in x.getMessage()]


def test_from_float32_to_float16_and_back(trained, caplog):
    checkpoint = trained(None, 4, resume=False)
    assert "grad_scaler" not in checkpoint["trainer"]
    scaler = RecordingScaler()
    checkpoint = trained(scaler, 9)
    assert scaler.scales == [256, 256, 256, 512, 512]  # a fresh one, which grows
    assert checkpoint["iteration"] == 8
    (warning,) = scaler_warnings(caplog)
    assert "starts with its initial scale, 256" in warning.getMessage()
    scaler = RecordingScaler()
    trained(scaler, 11)  # now its own
    assert scaler.scales == [512, 1024]
    assert len(scaler_warnings(caplog)) == 1
    checkpoint = trained(None, 12)
    assert "grad_scaler" not in checkpoint["trainer"]
    assert checkpoint["iteration"] == 11


def test_the_state_of_a_disabled_scaler(caplog):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StepTrainer(model, None, optimizer, grad_scaler=RecordingScaler())
    state = trainer.state_dict()
    trainer.load_state_dict({**state, "grad_scaler": {}})
    assert len(scaler_warnings(caplog)) == 1
    assert "grad_scaler" in state


class Overflowing(nn.Module):
    """Has a gradient that is not finite unless the scale of the loss is small."""

    def __init__(self, limit):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.limit = limit

    def forward(self, _):
        output = self.weight * 1
        output.register_hook(lambda x: torch.where(x.abs() > self.limit, torch.inf, x))
        return {"loss": output}


def scaled_trainer(limit):
    model = Overflowing(limit)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    scaler = GradScaler("cpu", init_scale=2.0**8)
    trainer = StepTrainer(model, [[None]] * 99, optimizer, grad_scaler=scaler)
    trainer.register_hooks([EMAHook(model)])
    return trainer, model


def test_overflows_are_skipped_until_the_scale_fits():
    trainer, model = scaled_trainer(limit=64)
    weights = []
    trainer.register_hooks([Recording(lambda: weights.append(model.weight.item()))])
    trainer.train(0, 4)
    assert weights == [1, 1, 0.75, 0.5]  # 256, 128, 64, 64
    assert trainer.state_dict()["hooks"]["EMAHook"] == {"n_averaged": 2}
    assert trainer.grad_scaler.get_scale() == 64


def test_overflows_at_every_scale_end_the_run():
    trainer, model = scaled_trainer(limit=0)
    with pytest.raises(NonFiniteError, match="the norm of the gradient is .* in iteration 30"):
        trainer.train(0, 99)
    assert model.weight.item() == 1


class Recording(module.HookBase):
    def __init__(self, function):
        self.after_step = function
