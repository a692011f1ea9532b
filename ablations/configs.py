"""Configs of the study: a row's config, adapted to the embedded data by one override file."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence

from omegaconf import DictConfig, OmegaConf

from atss_d2.config import apply_overrides, get_config

from .rows import Row

# Data set -> file that turns a row into a small experiment; None: the row as it is.
DATA = {
    "shapes": "common/ablation_shapes",
    "trees": "common/ablation_trees",
    "coco": None,
}


def load_row_config(row: Row, data: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Loads the config of a row for one of the data sets of the study.

    Args:
        row: See :data:`ablations.ROWS`.
        data: ``"coco"`` is the paper's experiment; ``"shapes"`` and ``"trees"`` are small ones.
        overrides: ``key=value`` as for train_net.py, applied last.

    Raises:
        KeyError: An override names a key that does not exist.
        ValueError: The data set does not exist, or an override cannot be applied.
    """
    if data not in DATA:
        raise ValueError(f"data must be one of {', '.join(DATA)}, got '{data}'")
    if data == "shapes" and row.small_config is not None:
        return apply_overrides(get_config(row.small_config), overrides)
    cfg = get_config(row.config)
    override_file = DATA[data]
    if override_file is not None:
        cfg = overlay(cfg, get_config(override_file))
    return apply_overrides(cfg, overrides)


def overlay(cfg: DictConfig, over: DictConfig) -> DictConfig:
    """Merges one config over another, whose classes may take other arguments.

    A node of ``over`` with a ``_target_`` replaces the node of the same name, because arguments of
    another class must not remain. Any other node is merged, key by key.

    Returns:
        A new config.
    """
    cfg = cfg.copy()
    _drop_replaced(cfg, over)
    return OmegaConf.merge(cfg, over)


def _drop_replaced(cfg: DictConfig, over: DictConfig) -> None:
    for key in over:
        if OmegaConf.is_interpolation(over, key) or not isinstance(over[key], DictConfig):
            continue
        if "_target_" in over[key]:
            cfg.pop(key, None)
        elif isinstance(cfg.get(key), DictConfig):
            _drop_replaced(cfg[key], over[key])


def config_hash(cfg: DictConfig) -> str:
    """Returns eight hex digits that are equal for configs of the same experiment.

    Output folder and seed do not count.
    """
    content = OmegaConf.to_container(cfg, resolve=False)
    for key in ("output_dir", "seed"):
        content["train"].pop(key, None)
    text = json.dumps(content, sort_keys=True, default=_name)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def row_hash(row: Row, data: str, overrides: tuple[str, ...] = ()) -> str:
    """Returns the cached :func:`config_hash` of a row; see :func:`load_row_config`."""
    return config_hash(load_row_config(row, data, overrides))


def _name(target: Callable) -> str:
    return f"{target.__module__}.{target.__qualname__}"
