"""Checks what only a GPU can show; ``make test-gpu`` runs them.

``python -m benchmarks.gpu`` is the command. :data:`CHECKS` is the one list: of what is run, and of
what would be run without a GPU.
"""

import atss_d2  # noqa: F401  (must be imported first: silences deprecation warnings)

# isort: split
from . import equality, family, precision, waits, costs, training, suite  # noqa: F401, I001  (the order)
from .registry import CHECKS, Check, Environment, Outcome

__all__ = ["CHECKS", "Check", "Environment", "Outcome"]
