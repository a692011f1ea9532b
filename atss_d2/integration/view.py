"""A view of a model with some attributes replaced."""

from __future__ import annotations

from typing import Any

from torch import nn


class View:
    """A view of a model with some attributes replaced; the model itself does not change."""

    def __init__(self, model: nn.Module, **attributes: Any) -> None:
        self._model = model
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
