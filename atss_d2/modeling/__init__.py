"""The detector and its parts. Importing this package fills Detectron2's registries."""

from .anchor_generator import ShiftedAnchorGenerator
from .atss import ATSS
from .backbones import (
    build_atss_resnet_fpn_backbone,
    build_fpn_with_p6p7,
    make_resnet_stages,
)
from .criterion import (
    CRITERION_REGISTRY,
    ATSSCriterion,
    Criterion,
    DDODCriterion,
    IoUBranchCriterion,
    SoftTargetCriterion,
    TaskAlignedCriterion,
    VFNetCriterion,
)
from .distance_distributions import DistanceDistributions
from .dyhead import DyHead
from .gflv2_head import GFLv2Head
from .head import HEAD_REGISTRY, ATSSHead
from .matchers import (
    MATCHER_REGISTRY,
    ATSSMatcher,
    CenterSamplingMatcher,
    DDODMatcher,
    DenseMatcher,
    DynamicSoftLabelMatcher,
    IoUMatcher,
    PAAMatcher,
    ScaleRangeMatcher,
    SimOTAMatcher,
    TaskAlignedMatcher,
    TopKMatcher,
)
from .nouns import Assignment, DecodedPredictions, Predictions, Scene, Targets
from .test_time_augmentation import DenseDetectorWithTTA
from .tood_head import TOODHead
from .torchvision_backbone import TorchvisionBackbone, build_torchvision_fpn_backbone
from .vfnet_head import VFNetHead

__all__ = [
    "ATSS",
    "CRITERION_REGISTRY",
    "HEAD_REGISTRY",
    "MATCHER_REGISTRY",
    "ATSSCriterion",
    "ATSSHead",
    "ATSSMatcher",
    "Assignment",
    "CenterSamplingMatcher",
    "Criterion",
    "DDODCriterion",
    "DDODMatcher",
    "DecodedPredictions",
    "DenseDetectorWithTTA",
    "DenseMatcher",
    "DistanceDistributions",
    "DyHead",
    "DynamicSoftLabelMatcher",
    "GFLv2Head",
    "IoUBranchCriterion",
    "IoUMatcher",
    "PAAMatcher",
    "Predictions",
    "ScaleRangeMatcher",
    "Scene",
    "ShiftedAnchorGenerator",
    "SimOTAMatcher",
    "SoftTargetCriterion",
    "TOODHead",
    "Targets",
    "TaskAlignedCriterion",
    "TaskAlignedMatcher",
    "TopKMatcher",
    "TorchvisionBackbone",
    "VFNetCriterion",
    "VFNetHead",
    "build_atss_resnet_fpn_backbone",
    "build_fpn_with_p6p7",
    "build_torchvision_fpn_backbone",
    "make_resnet_stages",
]
