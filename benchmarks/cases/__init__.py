"""The cases: one module each, with ``TITLE`` and ``steps(settings)``."""

from __future__ import annotations

from types import ModuleType

from . import (
    assignment,
    data_path,
    deployment,
    exported_nms,
    focal_loss,
    inference,
    launches,
    losses,
    mixtures,
    nms,
    postprocess,
    prediction,
    prediction_rules,
    quality_steps,
    training_step,
)
from .step import Step

CASES: dict[str, ModuleType] = {
    "assignment": assignment,
    "prediction_rules": prediction_rules,
    "focal_loss": focal_loss,
    "losses": losses,
    "mixtures": mixtures,
    "postprocess": postprocess,
    "nms": nms,
    "inference": inference,
    "deployment": deployment,
    "exported_nms": exported_nms,
    "training_step": training_step,
    "quality_steps": quality_steps,
    "launches": launches,
    "data_path": data_path,
    "prediction": prediction,
}

__all__ = ["CASES", "Step"]
