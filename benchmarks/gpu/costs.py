"""Time and memory beside Detectron2's FCOS and RetinaNet: the cases of the benchmarks."""

from __future__ import annotations

from ..cases import losses as losses_case
from ..cases import training_step
from ..report import format_value
from ..results import Measurement
from ..settings import Settings
from .registry import Environment, check

_LEAST_RATIO = 0.9  # of a peer's time or memory to ours


def _settings(env: Environment) -> Settings:
    return Settings(
        quick=env.tiny,
        full_size=True,
        seconds=0.0 if env.tiny else 15.0,
        min_rounds=1 if env.tiny else 5,
        device=env.device,
    )


def _figure(measurement: Measurement, *, is_strict: bool) -> str:
    """Words a measurement.

    Raises:
        AssertionError: A peer is better by more than a tenth.
    """
    ours = format_value(measurement.median(measurement.ours), measurement.unit)
    ratios = {
        name: ratio
        for name in measurement.samples
        if name != measurement.ours and (ratio := measurement.ratio(name)) is not None
    }
    words = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())
    if is_strict and any(ratio < _LEAST_RATIO for ratio in ratios.values()):
        raise AssertionError(f"{measurement.quantity} {ours}; others / ours: {words}")
    return f"{ours}; others / ours: {words}"


def _step(env: Environment, label: str) -> str:
    step = next(x for x in training_step.steps(_settings(env)) if x.label == label)
    (measurement,) = step.run()
    return _figure(measurement, is_strict=not env.tiny)


@check("time of a training step, R-50-FPN, 2 x 800 x 1344, float32", seconds=45)
def step_time(env: Environment) -> str:
    """Forward, backward and SGD; fails if a peer takes less than 0.9 of our time."""
    return _step(env, "time")


@check("peak memory of a training step beyond parameters and momentum", seconds=30)
def step_memory(env: Environment) -> str:
    """Fails if a peer takes less than 0.9 of our memory."""
    return _step(env, "memory")


@check("time and memory of labels and losses alone", seconds=45)
def losses_cost(env: Environment) -> str:
    """From the head's maps to their gradients."""
    (step,) = losses_case.steps(_settings(env))
    return " | ".join(_figure(m, is_strict=not env.tiny) for m in step.run())
