"""ATSS for Detectron2. Importing this package registers models, backbones and data sets."""

__version__ = "0.1.0"

from . import data  # noqa: F401  (registers the data sets)
from .config import add_atss_config, get_cfg, get_config, list_configs
from .modeling import ATSS, ATSSHead, ATSSMatcher, TorchvisionBackbone
from .predictor import Predictor

__all__ = [
    "ATSS",
    "ATSSHead",
    "ATSSMatcher",
    "Predictor",
    "TorchvisionBackbone",
    "add_atss_config",
    "get_cfg",
    "get_config",
    "list_configs",
]
