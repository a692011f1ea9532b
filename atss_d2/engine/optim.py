"""Optimizer options that Detectron2's builders take as arguments."""

from __future__ import annotations


class BackboneLRFactor:
    """Scales down the learning rate of a model's pretrained part.

    Pass it as ``lr_factor_func`` to ``detectron2.solver.build.get_default_optimizer_params``.
    """

    def __init__(self, *, factor: float, prefix: str = "backbone.bottom_up.") -> None:
        """
        Args:
            factor: Learning rate of matching parameters, as a fraction of the base rate.
            prefix: Prefix of the names of matching parameters, which ``backbone.`` may precede, as
                in a model with DyHead.
        """
        self.factor = factor
        self.prefix = prefix

    def __call__(self, parameter_name: str) -> float:
        prefixes = (self.prefix, f"backbone.{self.prefix}")
        return self.factor if parameter_name.startswith(prefixes) else 1.0
