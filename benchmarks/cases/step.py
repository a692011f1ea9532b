"""The parts of a case."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..results import Measurement


class Step(NamedTuple):
    """A part of a case, as shown in the progress bar."""

    label: str
    run: Callable[[], list[Measurement]]
