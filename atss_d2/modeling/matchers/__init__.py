"""Sample selection: which anchors are positive for which ground-truth box.

One rule per file, one interface (:class:`DenseMatcher`).
"""

from .atss import ATSSMatcher
from .base import BACKGROUND, IGNORED, DenseMatcher

__all__ = ["BACKGROUND", "IGNORED", "ATSSMatcher", "DenseMatcher"]
