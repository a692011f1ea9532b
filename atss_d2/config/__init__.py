"""Configs of both kinds: by name, from files, with overrides, and what they say."""

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
from .views import View, by_kind, load_view, resolve_device, view_of
from .yaml_keys import add_atss_config, cfg_to_kwargs, signature_to_cfg

__all__ = [
    "ConfigError",
    "View",
    "add_atss_config",
    "apply_overrides",
    "apply_yaml_overrides",
    "by_kind",
    "cfg_to_kwargs",
    "find_config",
    "get_cfg",
    "get_config",
    "get_config_path",
    "is_lazy_config",
    "list_configs",
    "load_config",
    "load_view",
    "resolve_device",
    "signature_to_cfg",
    "view_of",
]
