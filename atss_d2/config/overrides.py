"""Applies overrides from the command line, and rejects those whose key does not exist.

Detectron2's ``LazyConfig.apply_overrides`` creates missing keys, so a misspelled
``train.max_itr=10`` is silently accepted and changes nothing.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..plain.suggestions import did_you_mean
from .renames import REPLACED_KEYS, current_lazy_key, current_yaml_key
from .targets import located

# Keys of yaml configs, and their names in LazyConfigs.
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
    """Applies ``key=value`` overrides to a LazyConfig in place: all of them or, on an error, none.

    A key must exist, or be an argument of the class or function that its node describes (so
    ``model.test_score_thresh=0.3`` works although the config leaves it at its default). A key that
    starts with ``+`` is added without a check. Values use Hydra's override grammar; ``None`` is
    also accepted for its ``null``. A new ``_target_`` drops the old one's arguments that it does
    not take.

    Args:
        cfg: The config.
        overrides: Strings ``key=value``.

    Returns:
        ``cfg``.

    Raises:
        ValueError: An override is not ``key=value``, or the value does not fit the key.
        KeyError: A key does not exist; the message names the nearest keys.
    """
    trial = copy.deepcopy(cfg)
    values = {}
    for override in overrides:
        key, value = _parse(override, overrides)
        key = current_lazy_key(key)
        if key.startswith("+"):
            key = key.lstrip("+")
            _check_parents(trial, key)
        else:
            value = _check(trial, key, value)
        try:
            _update(trial, key, value)
        except OmegaConfBaseException as error:
            raise ValueError(f"'{override}': {str(error).splitlines()[0]}") from None
        values[key] = value
    for key, value in values.items():
        _update(cfg, key, value)
    return cfg


def apply_yaml_overrides(cfg: CfgNode, overrides: Sequence[str]) -> CfgNode:
    """Applies ``KEY VALUE`` overrides to a yaml config in place.

    Args:
        cfg: The config.
        overrides: Alternating keys and values.

    Returns:
        ``cfg``.

    Raises:
        ValueError: ``overrides`` are not pairs of keys and values, or a value has the wrong type.
        KeyError: A key does not exist; the message names the nearest keys.
    """
    known = list(_all_yaml_keys(cfg))
    overrides = list(overrides)
    overrides[0::2] = [current_yaml_key(key, known) for key in overrides[0::2]]
    for key in overrides[0::2]:
        if key.startswith("-"):
            raise ValueError(_misplaced_flag(key))
        if key in known:
            continue
        if "=" in key:
            raise ValueError(f"'{key}': a yaml config takes KEY VALUE, not key=value")
        hint = did_you_mean(key, known)
        raise KeyError(f"The config has no key '{key}'{hint and f'; {hint}'}")
    if len(overrides) % 2:
        raise ValueError(f"'{overrides[-1]}' has no value: a yaml config takes KEY VALUE")
    cfg.merge_from_list(overrides)
    return cfg


def _parse(override: str, overrides: Sequence[str]) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if override.startswith("-"):
        raise ValueError(_misplaced_flag(override))
    if not equals:
        raise ValueError(_not_key_value(override, overrides))
    if text.strip() == "None":  # Hydra would parse it as a string
        return key, None
    # Hydra parses only the value: we check the key ourselves.
    try:
        parsed = OverridesParser.create().parse_override(f"key={text}")
    except HydraException:
        raise ValueError(
            f"'{override}': {text} is not a value in Hydra's grammar; quote it so that the shell "
            f"keeps the quotes, \"{key}='{text}'\""
        ) from None
    if parsed.is_sweep_override():
        raise ValueError(f"'{override}' are several values in Hydra's grammar; a list is [a,b]")
    return key, parsed.value()


def _misplaced_flag(flag: str) -> str:
    return f"'{flag}' is not an override; flags such as --resume stand before the first override"


def _not_key_value(override: str, overrides: Sequence[str]) -> str:
    message = f"'{override}' is not an override: this is a LazyConfig, which takes key=value"
    if override in _LAZY_NAMES:
        position = list(overrides).index(override) + 1
        value = overrides[position] if position < len(overrides) else "VALUE"
        message += f"; write {_LAZY_NAMES[override]}={value}"
    return message


def _check(cfg: DictConfig, key: str, value: Any) -> Any:
    """Checks that a key exists and that its value fits; returns the value."""
    parts = key.split(".")
    if not _accepts(cfg, parts):
        raise KeyError(_unknown_key(cfg, key))
    old = cfg
    for part in parts:
        old = _child(old, part)
    if isinstance(old, DictConfig) and isinstance(value, dict):
        return {name: _check(cfg, f"{key}.{name}", value[name]) for name in value}
    if isinstance(old, DictConfig) and value is not None:
        raise ValueError(
            f"'{key}' is not a value but a node of the config; set one of its keys: "
            f"{', '.join(f'{key}.{name}' for name in old if name != '_target_')}"
        )
    if isinstance(old, (int, float)) and isinstance(value, str) and "${" not in value:
        kind = "True or False" if isinstance(old, bool) else "a number"
        raise ValueError(f"{key} must be {kind}, got '{value}'")
    if type(old) is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 9e4 is a float in Hydra's grammar
    return value


def _check_parents(cfg: DictConfig, key: str) -> None:
    """Checks that a new key does not turn a value into a node."""
    node, parts = cfg, key.split(".")
    for i, part in enumerate(parts[:-1], start=1):
        node = _child(node, part) if OmegaConf.is_config(node) else node
        if node is not None and not OmegaConf.is_config(node):
            raise KeyError(f"'+{key}': {'.'.join(parts[:i])} is a value, it has no keys")


def _update(cfg: DictConfig, key: str, value: Any) -> None:
    OmegaConf.update(cfg, key, value, merge=True)
    if key.endswith("._target_"):
        _drop_arguments(OmegaConf.select(cfg, key.removesuffix("._target_")))


def _drop_arguments(node: DictConfig) -> None:
    """Removes arguments of the previous ``_target_`` that the new one does not take."""
    try:
        parameters = inspect.signature(located(node._target_)).parameters
    except (ImportError, TypeError, ValueError):  # no target, or one written in C
        return
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        for name in set(node) - {"_target_", *parameters}:
            del node[name]


def _unknown_key(cfg: DictConfig, key: str) -> str:
    known = list(_all_keys(cfg))
    if key in _LAZY_NAMES:
        return f"The config has no key '{key}'; in a LazyConfig it is {_LAZY_NAMES[key]}"
    if key in REPLACED_KEYS:
        return f"The config has no key '{key}'; write {REPLACED_KEYS[key]}"
    last = key.split(".")[-1]
    elsewhere = [k for k in known if k.split(".")[-1] == last]  # the right name in another place
    hint = did_you_mean(key, known) or did_you_mean(
        key, elsewhere, cutoff=0.0, otherwise=f"its top-level keys: {', '.join(cfg)}"
    )
    return f"The config has no key '{key}'; {hint} (+{key}=... adds a new key)"


def _accepts(node: Any, parts: Sequence[str]) -> bool:
    """Returns whether the path exists below ``node`` or ends at an argument of a ``_target_``."""
    for i, part in enumerate(parts):
        if isinstance(node, ListConfig):
            if not part.isdigit() or int(part) >= len(node):
                return False
        elif isinstance(node, DictConfig):
            if part not in node.keys():  # noqa: SIM118  (`in node` resolves interpolations)
                return i == len(parts) - 1 and part in _target_arguments(node)
        else:
            return False
        node = _child(node, part)
    return True


def _child(node: Any, name: str) -> Any:
    """Returns a key's value or a list element; None if it is absent or not resolvable yet."""
    try:
        return node[int(name)] if isinstance(node, ListConfig) else node.get(name)
    except (OmegaConfBaseException, IndexError, ValueError):
        return None


def _target_arguments(node: DictConfig) -> list[str]:
    """Returns the argument names of a node's ``_target_``; empty if it has none."""
    names = _argument_names(_child(node, "_target_"))
    if "model_class" in names:  # build_with_matcher passes its other arguments on to this class
        names += _argument_names(_child(node, "model_class"))
    return names


def _argument_names(target: Any) -> list[str]:
    try:
        target = located(target)
        if not inspect.isclass(target):
            return _arguments(target)[0]
        names = []
        for cls in target.__mro__:  # the **kwargs of __init__ go to the next class
            if "__init__" in vars(cls):
                more, has_kwargs = _arguments(cls.__init__)
                names += more
                if not has_kwargs:
                    break
        return names
    except (ImportError, TypeError, ValueError):  # no class or function, or one written in C
        return []


def _arguments(function: Any) -> tuple[list[str], bool]:
    # Decorators such as @configurable wrap the function; signature() unwraps it.
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in parameters if p.kind in named and p.name != "self"]
    return names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, ListConfig):
        for i in range(len(node)):
            yield from _all_keys(_child(node, str(i)), f"{prefix}{i}.")
    elif isinstance(node, DictConfig):
        for name in node:
            if name != "_target_":
                yield f"{prefix}{name}"
                # A "${...}" is a leaf: its keys are listed where they are defined.
                if not OmegaConf.is_interpolation(node, name):
                    yield from _all_keys(_child(node, name), f"{prefix}{name}.")
        for name in _target_arguments(node):
            if name not in node.keys():  # noqa: SIM118
                yield f"{prefix}{name}"


def _all_yaml_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, CfgNode):
            yield from _all_yaml_keys(value, f"{prefix}{name}.")
