"""Losses, one idea per file, and the criteria that combine them."""

from .atss import ATSSCriterion
from .base import CRITERION_REGISTRY, Criterion
from .ddod import DDODCriterion
from .iou_branch import IoUBranchCriterion
from .soft_target import SoftTargetCriterion
from .task_aligned import TaskAlignedCriterion
from .vfnet import VFNetCriterion

__all__ = [
    "CRITERION_REGISTRY",
    "ATSSCriterion",
    "Criterion",
    "DDODCriterion",
    "IoUBranchCriterion",
    "SoftTargetCriterion",
    "TaskAlignedCriterion",
    "VFNetCriterion",
]
