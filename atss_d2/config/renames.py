"""Maps names of earlier versions to current names.

Old names in saved configs and old keys in overrides are replaced by the new ones, with a warning.
Old names in Python code, and keys whose value is now written differently, raise errors that name
the new ones. This module imports nothing from the package, so every part of it can use it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from detectron2.config import CfgNode

__all__ = [
    "REPLACED_KEYS",
    "current_lazy_key",
    "current_name",
    "current_yaml_key",
    "missing_name",
    "rename_lazy",
    "rename_yaml",
]

logger = logging.getLogger(__name__)

_BOX_CODING = "atss_d2.modeling.box_coding"
# Modules, classes and functions. A module's name stands for all names in it.
_NAMES = {
    "atss_d2.checkpoint.RECIPES": "atss_d2.checkpoint.CONVENTIONS",
    "atss_d2.checkpoint.apply_recipe": "atss_d2.checkpoint.apply_convention",
    "atss_d2.checkpoint.recipe_differences": "atss_d2.checkpoint.convention_differences",
    f"{_BOX_CODING}.box2box_transform": "detectron2.modeling.box_regression.Box2BoxTransform",
    "atss_d2.study": "ablations",
}
# Keys of LazyConfigs.
_LAZY_KEYS = {"model.matcher.ignore_iof_thresh": "model.matcher.ignore_ioa_thresh"}
# Keys of yaml configs. A key stays unchanged if the cfg does not have its new name.
_SHARED_BY_RULES = ("IGNORE_IOF_THRESH", "IGNORE_IOA_THRESH", "CENTER_EPSILON", "INSET")
_RULES = {
    "IOU_MATCHER": "IoUMatcher",
    "SCALE_RANGE_MATCHER": "ScaleRangeMatcher",
    "CENTER_SAMPLING_MATCHER": "CenterSamplingMatcher",
    "TOPK_MATCHER": "TopKMatcher",
}
_YAML_KEYS = {
    "MODEL.ATSS.SAMPLE_SELECTION": "MODEL.ATSS.MATCHER.NAME",
    "MODEL.ATSS.MATCHER.IGNORE_IOF_THRESH": "MODEL.ATSS.MATCHER.IGNORE_IOA_THRESH",
    # Keys shared by all rules used to be repeated for each rule.
    **{
        f"MODEL.ATSS.{node}.{key}": f"MODEL.ATSS.MATCHER.{key.replace('IOF', 'IOA')}"
        for node in _RULES
        for key in _SHARED_BY_RULES
    },
}
# Keys of LazyConfigs whose value is now written differently.
REPLACED_KEYS = {
    "model.box2box_transform.clamp_both_sides": (
        f"model.box2box_transform._target_={_BOX_CODING}.TwoSidedBox2BoxTransform"
    )
}


def _box2box_transform(node: dict[str, Any]) -> None:
    """Adapts a node to the factory's split into two classes, whose weights have no default."""
    node.setdefault("weights", [10.0, 10.0, 5.0, 5.0])
    if node.pop("clamp_both_sides", False):
        node["_target_"] = f"{_BOX_CODING}.TwoSidedBox2BoxTransform"


# Old ``_target_`` -> function that makes the other changes in its node.
_ARGUMENTS: dict[str, Callable[[dict[str, Any]], None]] = {
    f"{_BOX_CODING}.box2box_transform": _box2box_transform
}


def current_name(name: str) -> str:
    """Returns the current dotted name of a module, class or function."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        if (new := _NAMES.get(".".join(parts[:i]))) is not None:
            return ".".join([new, *parts[i:]])
    return name


def missing_name(module: str, name: str) -> Exception:
    """Returns the error that a module's ``__getattr__`` raises for a name it does not have."""
    old = f"{module}.{name}"
    if old in _NAMES:  # an AttributeError would lose its message in `from module import name`
        return ImportError(f"{old} is now {_NAMES[old]}")
    return AttributeError(f"module '{module}' has no attribute '{name}'")


def current_lazy_key(key: str) -> str:
    """Returns the current name of a LazyConfig key."""
    return _tell(key, _LAZY_KEYS.get(key, key))


def current_yaml_key(key: str, known: Collection[str]) -> str:
    """Returns the current name of a yaml config key, if it is among the known keys."""
    new = _YAML_KEYS.get(key, key)
    return _tell(key, new) if new in known else key


def _tell(old: str, new: str) -> str:
    if old != new:
        logger.warning(f"{old} is now {new}")
    return new


def rename_lazy(content: Any, path: str) -> None:
    """Changes a saved LazyConfig to current names, in place.

    Args:
        content: Its dicts and lists.
        path: Path of its file, for the warning.
    """
    renamed = dict(_rename_targets(content))
    for old, new in _LAZY_KEYS.items():
        renamed |= {old: new} if _move(content, old, new) else {}
    _report(renamed, path)


def rename_yaml(cfg: CfgNode, known: CfgNode, path: str) -> bool:
    """Changes a yaml config to current names, in place; returns whether it had old names.

    Args:
        cfg: The keys that the file sets.
        known: A cfg with all keys.
        path: Path of the file, for the warning.
    """
    if _has(cfg, "MODEL.ATSS"):
        _drop_other_rules(cfg["MODEL"]["ATSS"])
    renamed = {
        old: new
        for old, new in _YAML_KEYS.items()
        if _has(known, new) and not _has(known, old) and _move(cfg, old, new, CfgNode)
    }
    _report(renamed, path)
    return bool(renamed)


def _drop_other_rules(node: CfgNode) -> None:
    """Removes from an earlier version's ``MODEL.ATSS`` the keys of rules that it does not use.

    For the keys that rules now share, the values of the chosen rule are kept.
    """
    chosen = node.get("SAMPLE_SELECTION") or node.get("MATCHER", {}).get("NAME", "ATSSMatcher")
    for name, rule in _RULES.items():
        for key in _SHARED_BY_RULES:
            if name in node and key in node[name] and rule != chosen:
                del node[name][key]
            elif name in node and key in node[name]:  # drop the value meant for ATSSMatcher
                node.get("MATCHER", {}).pop(key, None)


def _report(renamed: dict[str, str], path: str) -> None:
    if renamed:
        names = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        logger.warning(f"'{path}' is of an earlier version: {names}")


def _rename_targets(node: Any) -> list[tuple[str, str]]:
    """Renames every ``_target_`` in a tree; returns the old and new names."""
    renamed = []
    for child in node.values() if isinstance(node, dict) else node:
        if isinstance(child, (dict, list)):
            renamed += _rename_targets(child)
    if isinstance(node, dict) and isinstance(old := node.get("_target_"), str):
        _ARGUMENTS.get(old, lambda node: None)(node)
        node["_target_"] = current_name(node["_target_"])
        if node["_target_"] != old:
            renamed.append((old, node["_target_"]))
    return renamed


def _has(tree: dict, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    for part in parent.split("."):
        tree = tree.get(part, {})
    return name in tree


def _move(tree: dict, old: str, new: str, new_node: type[dict] = dict) -> bool:
    """Moves a value to another dotted key; returns whether there was one."""
    if not _has(tree, old):
        return False
    parts = old.split(".")
    node = tree
    for part in parts[:-1]:
        node = node[part]
    value = node.pop(parts[-1])
    *parents, name = new.split(".")
    for part in parents:
        tree = tree.setdefault(part, new_node())
    tree[name] = value
    return True
