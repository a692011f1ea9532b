"""What all criteria have in common."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn

from ..nouns import Predictions, Targets
from .positives import DEFAULT_FLOORS, loss_normalizers

CRITERION_REGISTRY = Registry("CRITERION")
CRITERION_REGISTRY.__doc__ = """Losses by name, for ``MODEL.ATSS.CRITERION.NAME``.

A class registered by ``@CRITERION_REGISTRY.register()`` is a :class:`Criterion`; its keyword
arguments are the keys of the node ``MODEL.ATSS.MY_CRITERION`` that a cfg may have.
"""

_SWITCH = "head.with_centerness"


class _Batch(NamedTuple):
    """Totals of all micro-batches, and those that the micro-batches have had so far."""

    totals: Sequence[Tensor]
    seen: list[tuple[Tensor, ...]]


class Criterion(nn.Module, ABC):
    """The losses of a detector: ``criterion(predictions, targets)`` returns a dict of them.

    A subclass implements :meth:`compute`. It keeps state over iterations in buffers. A warm-up
    needs no state: the rule reads ``scene.iteration``, and the criterion checks whether there are
    ``targets.soft``.

    Attributes:
        box2box_transform: Box coder of the regression.
        num_classes: K, the label of background.
        uses_quality: Whether the head must (True) or must not (False) predict a quality; None:
            either way. A class attribute.
        totals_need_predictions: Whether :meth:`totals` returns None.
    """

    uses_quality: bool | None = None
    totals_need_predictions = False

    def __init__(self) -> None:
        super().__init__()
        self.box2box_transform: Any = None
        self.num_classes: int | None = None
        self._batch: _Batch | None = None

    def bind(self, *, box2box_transform: Any, num_classes: int) -> None:
        """Sets what the detector determines; a detector may call it any number of times.

        Args:
            box2box_transform: Box coder of the regression.
            num_classes: K.
        """
        # Not as a submodule, even if the coder is one: its state belongs to the detector.
        self.__dict__["box2box_transform"] = box2box_transform
        self.num_classes = num_classes

    def forward(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Computes the losses of a batch, outside autocast.

        Args:
            predictions: Predictions of the head.
            targets: Targets of its anchors.

        Returns:
            Weighted scalars by name, ``loss_<name>``.

        Raises:
            ValueError: The head predicts a quality that has no loss here, or lacks one.
        """
        self.check_quality(predictions.quality is not None)
        with torch.autocast(targets.labels.device.type, enabled=False):
            return self.compute(predictions, targets)

    def check_quality(self, is_predicted: bool) -> None:
        """Checks that the head predicts a quality if and only if it is used.

        Raises:
            ValueError: Otherwise; the message says what to set.
        """
        if self.uses_quality in (None, is_predicted):
            return
        if self.uses_quality:
            says = f"trains a quality, which the head does not predict: set {_SWITCH}=True"
        else:
            says = f"has no loss for the quality that the head predicts: set {_SWITCH}=False"
        raise ValueError(f"{type(self).__name__} {says}")

    @abstractmethod
    def compute(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Computes the losses.

        Every process must call the same collectives in every iteration, even without boxes, and no
        value may be read on the host.
        """

    def totals(self, targets: Targets, *, with_quality: bool) -> tuple[Tensor, ...] | None:
        """Returns what :meth:`compute` passes to :meth:`normalizers`, from the targets alone.

        Args:
            targets: Targets of a micro-batch.
            with_quality: Whether the head predicts a quality.

        Returns:
            0-dim totals; None, as here, if they also depend on the predictions.
        """
        return None

    def normalizers(
        self, *totals: Tensor, floors: Sequence[float] = DEFAULT_FLOORS
    ) -> tuple[Tensor, ...]:
        """Returns :func:`loss_normalizers`; within :meth:`normalized_by`, of the whole batch."""
        if self._batch is None:
            return loss_normalizers(*totals, floors=floors)
        self._batch.seen.append(totals)
        return loss_normalizers(*self._batch.totals, floors=floors)

    @contextlib.contextmanager
    def normalized_by(self, totals: Sequence[Tensor]) -> Iterator[list[tuple[Tensor, ...]]]:
        """Normalizes the losses of micro-batches by the totals of all of them together.

        The sum of their losses is then the loss of the whole batch.

        Yields:
            A list to which every micro-batch appends totals of its own.
        """
        self._batch = _Batch(totals, [])
        try:
            yield self._batch.seen
        finally:
            self._batch = None
