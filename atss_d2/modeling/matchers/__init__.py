"""Sample selection: which anchors are positive for which ground-truth box.

One rule per file, one interface (:class:`DenseMatcher`).
"""

from .atss import ATSSMatcher
from .base import MATCHER_REGISTRY, DenseMatcher
from .center_sampling import CenterSamplingMatcher
from .iou import IoUMatcher
from .paa import PAAMatcher
from .prediction_aware_atss import DDODMatcher
from .scale_range import ScaleRangeMatcher
from .selection import BACKGROUND, IGNORED
from .sim_ota import SimOTAMatcher
from .soft_label import DynamicSoftLabelMatcher
from .task_aligned import TaskAlignedMatcher
from .topk import TopKMatcher

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "MATCHER_REGISTRY",
    "ATSSMatcher",
    "CenterSamplingMatcher",
    "DDODMatcher",
    "DenseMatcher",
    "DynamicSoftLabelMatcher",
    "IoUMatcher",
    "PAAMatcher",
    "ScaleRangeMatcher",
    "SimOTAMatcher",
    "TaskAlignedMatcher",
    "TopKMatcher",
]
