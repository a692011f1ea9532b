"""Finds, loads, overrides and reads configs of both kinds."""

from .defaults import add_atss_config
from .files import (
    ConfigError,
    find_config,
    get_cfg,
    get_config,
    get_config_path,
    is_lazy_config,
    list_configs,
    load_config,
)
from .overrides import apply_overrides, apply_yaml_overrides
from .targets import located, target_of
from .views import View, by_kind, load_view, resolve_device, view_of

__all__ = [
    "ConfigError",
    "View",
    "add_atss_config",
    "apply_overrides",
    "apply_yaml_overrides",
    "by_kind",
    "find_config",
    "get_cfg",
    "get_config",
    "get_config_path",
    "is_lazy_config",
    "list_configs",
    "load_config",
    "load_view",
    "located",
    "resolve_device",
    "target_of",
    "view_of",
]
