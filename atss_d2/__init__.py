"""ATSS for Detectron2. Importing this package registers models, backbones and data sets."""

import warnings

from .warning_filters import filter_third_party_warnings

__version__ = "0.2.0"

with warnings.catch_warnings():  # importing Detectron2 raises warnings
    filter_third_party_warnings()
    from . import data  # registers the data sets
    from .config import add_atss_config, get_cfg, get_config, list_configs
    from .integration import use_atss, use_matcher
    from .modeling import (
        ATSS,
        ATSSHead,
        ATSSMatcher,
        CenterSamplingMatcher,
        DenseDetectorWithTTA,
        IoUMatcher,
        ScaleRangeMatcher,
        TopKMatcher,
        TorchvisionBackbone,
    )
    from .predictor import Predictor

__all__ = [
    "ATSS",
    "ATSSHead",
    "ATSSMatcher",
    "CenterSamplingMatcher",
    "DenseDetectorWithTTA",
    "IoUMatcher",
    "Predictor",
    "ScaleRangeMatcher",
    "TopKMatcher",
    "TorchvisionBackbone",
    "add_atss_config",
    "data",
    "get_cfg",
    "get_config",
    "list_configs",
    "use_atss",
    "use_matcher",
]
