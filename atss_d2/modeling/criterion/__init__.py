"""Losses: what they are made of, one idea per file, and criteria, which join them."""

from .atss import ATSSCriterion
from .base import CRITERION_REGISTRY, Criterion

__all__ = ["CRITERION_REGISTRY", "ATSSCriterion", "Criterion"]
