"""Losses: what they are made of, one idea per file, and criteria, which join them."""

from .atss import ATSSCriterion
from .base import Criterion

__all__ = ["ATSSCriterion", "Criterion"]
