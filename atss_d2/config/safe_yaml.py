"""Reads yaml configs without executing code in them.

Detectron2 reads both kinds of yaml with ``yaml.unsafe_load``, which executes a line such as
``!!python/object/apply:os.system [...]``, also in a file that ``_BASE_`` names. Here tags are only
data. A saved LazyConfig may contain the tags that ``LazyConfig.save`` writes for config values:
tuples, ``ShapeSpec``, and names of classes and functions, which are looked up but not called. A
yacs tree needs no tags.

Files inside the installed ``detectron2`` package, whose code runs anyway, are read as Detectron2
reads them; its ``Base-RetinaNet.yaml`` computes anchor sizes with an executable tag.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import detectron2
import yaml
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from .renames import current_name, rename_lazy, rename_yaml

__all__ = ["load_lazy_yaml", "merge_yaml"]

_PACKAGE = Path(detectron2.__file__).resolve().parent
# Installed from a checkout, the package's configs are a link to a folder beside it.
_DETECTRON2 = (_PACKAGE, (_PACKAGE / "model_zoo" / "configs").resolve())
# Packages whose modules may be imported to find a name; other modules must be imported already.
_PACKAGES = ("atss_d2", "detectron2", "fvcore", "torch", "torchvision")
_TAG = "tag:yaml.org,2002:python/"


def load_lazy_yaml(path: str) -> DictConfig:
    """Loads a LazyConfig that was saved as yaml, such as the ``config.yaml`` of a run.

    Raises:
        ValueError: The file has a tag that would run code, or is not yaml; the message names the
            file, the line and the tag.
    """
    with PathManager.open(path) as file:
        content = _parse(path, file, _LazyLoader)
    try:
        rename_lazy(content, path)
        return OmegaConf.create(content, flags={"allow_objects": True})
    except RecursionError:
        raise ValueError(f"{path}: a value contains itself") from None


def merge_yaml(cfg: CfgNode, path: str) -> None:
    """Merges a yaml file, and the files that ``_BASE_`` names, into a yacs tree.

    Args:
        cfg: Changed in place.
        path: As for ``CfgNode.merge_from_file``.

    Raises:
        ValueError: As for :func:`load_lazy_yaml`.
    """
    loaded = CfgNode(_CheckedCfgNode.load_yaml_with_base(path))
    if rename_yaml(loaded, known=cfg, path=path):
        cfg.merge_from_other_cfg(loaded)
    else:
        # Only Detectron2's own files can still need unsafe loading.
        cfg.merge_from_file(path, allow_unsafe=True)


class _CheckedCfgNode(CfgNode):
    """Reads the files of a ``_BASE_`` chain; only Detectron2's own are loaded unsafely."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        if _is_of_detectron2(filename):
            return super().load_yaml_with_base(filename, allow_unsafe=True)
        with cls._open_cfg(filename) as file:
            content = _parse(filename, file, yaml.SafeLoader)
        if not isinstance(content, dict):
            raise ValueError(f"{filename} has a {type(content).__name__} at its top, not keys")
        return super().load_yaml_with_base(filename, allow_unsafe=False)


def _is_of_detectron2(filename: str) -> bool:
    path = Path(os.path.realpath(filename))
    return path.is_file() and any(folder in path.parents for folder in _DETECTRON2)


def _parse(path: str, file: Any, loader: type[yaml.SafeLoader]) -> Any:
    try:
        return yaml.load(file, loader)
    except (_TagError, yaml.constructor.ConstructorError) as error:
        line = error.problem_mark.line + 1
        raise ValueError(f"{path}, line {line}: {_refusal(error)}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line} is not yaml: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not yaml: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def _refusal(error: yaml.constructor.ConstructorError) -> str:
    _, found, tag = error.problem.partition("the tag 'tag:yaml.org,2002:")
    if not found:
        return error.problem
    return (
        f"the tag '!!{tag.rstrip(chr(39))}' would run code, which a yaml config must not do: write "
        "the value itself, or use a .py config"
    )


class _TagError(yaml.constructor.ConstructorError):
    """A known tag has an invalid value."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(None, None, problem, node.start_mark)


class _LazyLoader(yaml.SafeLoader):
    """A safe loader that knows the tags written by ``LazyConfig.save``."""


def _tuple(loader: _LazyLoader, node: yaml.Node) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


def _shape_spec(loader: _LazyLoader, node: yaml.Node) -> ShapeSpec:
    values = loader.construct_mapping(node, deep=True)
    known = set(inspect.signature(ShapeSpec).parameters)
    if not set(values) <= known or not all(isinstance(x, int | None) for x in values.values()):
        raise _TagError(f"a ShapeSpec has the whole numbers {', '.join(sorted(known))}", node)
    return ShapeSpec(**values)


def _named(loader: _LazyLoader, name: str, node: yaml.Node) -> Hashable:
    """Looks up a class or function by name, without calling it."""
    parts = current_name(name).split(".")
    for i in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:i])
        if parts[0] in _PACKAGES and module_name not in sys.modules:
            try:
                importlib.import_module(module_name)
            except ImportError:
                continue
        value = sys.modules.get(module_name)
        for part in parts[i:] if value is not None else ():
            value = inspect.getattr_static(value, part, None)
        if isinstance(value, type) or inspect.isroutine(value):
            return value
    raise _TagError(
        f"there is no class or function '{name}': import its module before the config is loaded",
        node,
    )


_LazyLoader.add_constructor(f"{_TAG}tuple", _tuple)
_LazyLoader.add_constructor(
    f"{_TAG}object:{ShapeSpec.__module__}.{ShapeSpec.__qualname__}", _shape_spec
)
_LazyLoader.add_multi_constructor(f"{_TAG}name:", _named)
