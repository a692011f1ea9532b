import pytest
import torch
from torch import nn

from atss_d2.engine import EMAHook


def make_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()


def change_weights(model: nn.Module) -> None:
    """As a step of training would: parameters, running statistics and the counter of batches."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model(torch.randn(5, 3))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_average_is_that_of_a_loop(decay):
    model = make_model()
    hook = EMAHook(model, decay=decay)
    hook.before_train()
    expected = None
    for n in range(6):
        change_weights(model)
        hook.after_step()
        values = snapshot(model)
        if n == 0:  # the start counts for nothing
            expected = values
        else:
            weight = min(decay, (1 + n) / (10 + n))
            for name, value in values.items():
                if value.is_floating_point():
                    value = weight * expected[name] + (1 - weight) * value
                expected[name] = value
        torch.testing.assert_close(snapshot(hook.model), expected)
        assert int(hook.model[1].num_batches_tracked) == n + 1
        torch.testing.assert_close(snapshot(model), values)  # training is left alone


def test_averaged_model_stays_in_evaluation_mode():
    model = make_model()
    hook = EMAHook(model)
    hook.before_train()
    change_weights(model)
    hook.after_step()
    assert model.training
    assert not any(module.training for module in hook.model.modules())


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan")])
def test_wrong_decay(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\), got {decay}"):
        EMAHook(make_model(), decay=decay)
