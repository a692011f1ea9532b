"""Runs that change between float32 and float16 when they are resumed."""

import pytest
import torch
from detectron2.engine import SimpleTrainer

from atss_d2.engine import trainer as module
from atss_d2.engine.amp import AMPTrainer
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")


class CPUTrainer(AMPTrainer):
    """Steps on the CPU, where Detectron2's trainer asserts a GPU; the state is the original's."""

    def __init__(self, model, data_loader, optimizer):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        super().__init__(model, data_loader, optimizer, grad_scaler=scaler)
        self.scales = []

    def run_step(self):
        losses = sum(self.model(next(self._data_loader_iter)).values())
        self.optimizer.zero_grad()
        self.scales.append(self.grad_scaler.get_scale())
        self.grad_scaler.scale(losses).backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """``trained(trainer_class, max_iter)`` goes on with a run up to an iteration."""
    made = []

    def run(trainer_class, max_iter, resume=True):
        def build(cfg, model, optimizer):
            made.append(trainer_class(model, None, optimizer))
            return made[-1]

        monkeypatch.setattr(module, "_build_trainer", build)
        run = toy.Run(tmp_path, **{"train.max_iter": max_iter})
        run.train(resume=resume)
        return made[-1], run.checkpoint()

    return run


def scaler_warnings(caplog) -> list:
    return [x for x in caplog.records if "gradient scaler" in x.getMessage()]


def test_from_float32_to_float16_and_back(trained, caplog):
    _, checkpoint = trained(SimpleTrainer, 4, resume=False)
    assert "grad_scaler" not in checkpoint["trainer"]
    trainer, checkpoint = trained(CPUTrainer, 9)
    assert trainer.scales == [256, 256, 256, 512, 512]  # a fresh one, which grows
    assert checkpoint["iteration"] == 8
    (warning,) = scaler_warnings(caplog)
    assert "starts with its initial scale, 256" in warning.getMessage()
    trainer, _ = trained(CPUTrainer, 11)  # now its own
    assert trainer.scales == [512, 1024]
    assert len(scaler_warnings(caplog)) == 1
    _, checkpoint = trained(SimpleTrainer, 12)
    assert "grad_scaler" not in checkpoint["trainer"]
    assert checkpoint["iteration"] == 11


def test_the_state_of_a_disabled_scaler(trained, caplog):
    trainer, _ = trained(CPUTrainer, 1, resume=False)
    state = trainer.state_dict()
    trainer.load_state_dict({**state, "grad_scaler": {}})
    assert len(scaler_warnings(caplog)) == 1
    assert "grad_scaler" in state
