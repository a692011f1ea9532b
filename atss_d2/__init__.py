"""ATSS for Detectron2. Importing this package registers models, backbones and data sets."""

import contextlib
import gc
import warnings

from .warning_filters import filter_third_party_warnings

__version__ = "0.2.0"


@contextlib.contextmanager
def _without_garbage_collection():
    """Saves a tenth of the import: it creates a million objects, none of them garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# Importing Detectron2 raises warnings.
with warnings.catch_warnings(), _without_garbage_collection():
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
