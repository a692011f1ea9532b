"""``key=value`` overrides of a LazyConfig, refused when they name nothing.

Detectron2's ``LazyConfig.apply_overrides`` creates keys that do not exist, so a misspelt
``train.max_itr=10`` is accepted in silence and changes nothing.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Sequence

from detectron2.config import LazyConfig
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig

# What a user of the yaml configs types, and what the same thing is called here.
_LAZY_NAMES = {
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "MODEL.DEVICE": "train.device",
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
    "SOLVER.BASE_LR": "optimizer.lr",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "DATALOADER.NUM_WORKERS": "dataloader.train.num_workers",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "TEST.DETECTIONS_PER_IMAGE": "model.max_detections_per_image",
    "MODEL.ATSS.NUM_CLASSES": "model.num_classes",
    "MODEL.ATSS.TEST_SCORE_THRESH": "model.test_score_thresh",
}


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Applies ``key=value`` overrides to a LazyConfig in place.

    A key must exist, or be an argument of the class or function whose node it is in (so
    ``model.test_score_thresh=0.3`` works although the config leaves it to the default). A key that
    starts with ``+`` is added without a check.

    Args:
        cfg: The config.
        overrides: Strings in Hydra's override grammar.

    Returns:
        ``cfg``.

    Raises:
        ValueError: An override is no ``key=value``.
        KeyError: A key names nothing; the message names the nearest keys.
    """
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise ValueError(_not_key_value(override, overrides))
        if not key.startswith("+") and not _accepts(cfg, key.split(".")):
            raise KeyError(_unknown_key(cfg, key))
    return LazyConfig.apply_overrides(cfg, list(overrides))


def _not_key_value(override: str, overrides: Sequence[str]) -> str:
    message = f"'{override}' is not an override: this is a LazyConfig, which takes key=value"
    if override in _LAZY_NAMES:
        position = list(overrides).index(override) + 1
        value = overrides[position] if position < len(overrides) else "VALUE"
        message += f"; write {_LAZY_NAMES[override]}={value}"
    elif override.startswith("-"):
        message += "; flags such as --resume stand before the first override"
    return message


def _unknown_key(cfg: DictConfig, key: str) -> str:
    known = list(_all_keys(cfg))
    if key in _LAZY_NAMES:
        return f"The config has no key '{key}'; in a LazyConfig it is {_LAZY_NAMES[key]}"
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    if not near:  # a right name in the wrong place
        last = key.split(".")[-1]
        near = [k for k in known if k.split(".")[-1] == last][:3]
    hint = f"did you mean {', '.join(near)}?" if near else f"its top-level keys: {', '.join(cfg)}"
    return f"The config has no key '{key}'; {hint} (+{key}=... adds a new key)"


def _accepts(node, parts: Sequence[str]) -> bool:
    """Whether the path exists below ``node`` or ends at an argument of a ``_target_``."""
    for i, part in enumerate(parts):
        if isinstance(node, ListConfig):
            if not part.isdigit() or int(part) >= len(node):
                return False
            node = node[int(part)]
        elif isinstance(node, DictConfig):
            if part not in node:
                return i == len(parts) - 1 and part in _target_arguments(node)
            node = node[part]
        else:
            return False
    return True


def _target_arguments(node: DictConfig) -> list[str]:
    """Names of the arguments of a node's ``_target_``; empty when it has none."""
    target = node.get("_target_", None)
    if target is None:
        return []
    if isinstance(target, str):
        target = locate(target)
    try:
        # The wrapper of @configurable hides the signature of a class: ask the function beneath.
        signature = inspect.signature(target.__init__ if inspect.isclass(target) else target)
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [n for n, p in signature.parameters.items() if p.kind in named and n != "self"]


def _all_keys(node, prefix: str = "") -> Iterator[str]:
    if isinstance(node, DictConfig):
        for name in node:
            if name != "_target_":
                yield prefix + name
                # A "${...}" is a leaf: its target may be incomplete until the config is.
                if not node._is_interpolation(name):
                    yield from _all_keys(node[name], f"{prefix}{name}.")
        for name in _target_arguments(node):
            if name not in node:
                yield prefix + name
