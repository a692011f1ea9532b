"""Finds configs by name, and loads files of either kind: LazyConfigs and yaml."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

from detectron2.config import CfgNode, LazyConfig
from detectron2.config import get_cfg as get_detectron2_cfg
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ..data.registration import repeated_registration
from ..plain.suggestions import did_you_mean
from .defaults import add_atss_config
from .safe_yaml import load_lazy_yaml, merge_yaml

# In a wheel, configs/ is inside the package; in a checkout (and an editable install), next to it.
# The order matters: another project's folder of that name may be next to an installed package.
_CONFIG_ROOTS = (
    Path(__file__).resolve().parents[1] / "configs",
    Path(__file__).resolve().parents[2] / "configs",
)


class ConfigError(ValueError):
    """A config file cannot be executed, or cannot be built."""


def get_cfg() -> CfgNode:
    """Returns Detectron2's default cfg with our keys, set to the paper's ATSS R-50-FPN 1x."""
    cfg = get_detectron2_cfg()
    add_atss_config(cfg)
    merge_yaml(cfg, get_config_path("yaml/Base-ATSS.yaml"))
    return cfg


def get_config_path(name: str) -> str:
    """Finds a file of ``configs/`` in a checkout or an installed package.

    Args:
        name: Path under ``configs/``; ``.py`` may be left out.

    Raises:
        FileNotFoundError: There is no such config; the message names the nearest ones.
    """
    candidates = (name, f"{name}.py")
    for root in _CONFIG_ROOTS:
        for candidate in candidates:
            path = root / candidate
            if path.is_file():
                return str(path)
    known = list_configs() + _files("*.yaml")
    stem = name[: -len(".py")] if name.endswith(".py") else name
    otherwise = f"available: {', '.join(_some(known))}"
    hint = did_you_mean(stem, known, cutoff=0.4, otherwise=otherwise)
    raise FileNotFoundError(f"There is no config '{name}'; {hint}")


def _some(names: list[str]) -> list[str]:
    """Returns the shortest name from each folder except the ablations, for a message."""
    shortest: dict[str, str] = {}
    for name in sorted(names, key=lambda name: ("Base" in name, len(name), name)):
        shortest.setdefault(name.partition("/")[0], name)
    return [*sorted(name for name in shortest.values() if "ablations/" not in name), "..."]


def list_configs() -> list[str]:
    """Returns all names for :func:`get_config`: paths under ``configs/`` without ``.py``."""
    return sorted(name[: -len(".py")] for name in _files("*.py"))


def _files(pattern: str) -> list[str]:
    """Returns the paths under ``configs/`` of all files except the shared parts."""
    for root in _CONFIG_ROOTS:
        if root.is_dir():
            names = (path.relative_to(root).as_posix() for path in root.rglob(pattern))
            return sorted(name for name in names if not name.startswith("common/"))
    return []


def get_config(name: str) -> DictConfig:
    """Loads a LazyConfig by its path under ``configs/``.

    Args:
        name: For example ``"coco/atss_R_50_FPN_1x"``.

    Returns:
        A config with Detectron2's five keys ``model``, ``dataloader``, ``optimizer``,
        ``lr_multiplier`` and ``train``.

    Raises:
        FileNotFoundError: There is no such config; the message names the nearest ones.
    """
    return _load_lazy(get_config_path(name))


def find_config(config: str | Path) -> str:
    """Returns the path of a config: a file, or a name for :func:`get_config_path`."""
    return str(config) if Path(config).is_file() else get_config_path(str(config))


def load_config(config: str | Path | DictConfig | CfgNode) -> DictConfig | CfgNode:
    """Loads a config of either kind.

    A ``.py`` file is executed; a yaml file never is, nor are the files that ``_BASE_`` names.

    Args:
        config: A file (``.py``, ``.yaml``), a name for :func:`get_config`, or a config, which is
            returned unchanged. A yaml file may be a yacs tree or a saved LazyConfig.

    Returns:
        A DictConfig for LazyConfigs, a CfgNode for yacs trees.

    Raises:
        FileNotFoundError: There is neither a file nor a config of that name.
        ConfigError: A ``.py`` file raises an error; the message names the file and the line.
        ValueError: A yaml file would run code, or is not yaml; the message names the file and the
            line.
    """
    if not isinstance(config, (str, Path)):
        return config
    path = find_config(config)
    if is_lazy_config(path):
        return _load_lazy(path)
    cfg = get_detectron2_cfg()
    add_atss_config(cfg)
    merge_yaml(cfg, path)
    return cfg


def _load_lazy(path: str) -> DictConfig:
    """Executes a ``.py`` config; only reads a yaml file."""
    if path.endswith((".yaml", ".yml")):
        return load_lazy_yaml(path)
    if not path.endswith(".py"):
        raise ConfigError(f"'{path}' is not a config: its name must end in .py, .yaml or .yml")
    with repeated_registration():
        try:
            return LazyConfig.load(path)
        except ConfigError:  # from a config that this one loads
            raise
        except Exception as error:  # whatever the code in the file raises
            raise ConfigError(_place_and_reason(path, error)) from error


def _place_and_reason(path: str, error: Exception) -> str:
    """Returns the file, line and message of an error in a config file."""
    if isinstance(error, SyntaxError):
        error = error.__cause__ if isinstance(error.__cause__, SyntaxError) else error
        file = error.filename if os.path.isfile(error.filename or "") else path
        return f"config '{file}', line {error.lineno}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if os.path.realpath(frame.filename) == os.path.realpath(path)
    ]
    place = f", line {lines[-1]}" if lines else ""
    message = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if isinstance(error, OmegaConfBaseException):  # only its first line is meant for users
        message = message.partition("\n")[0]
    return f"config '{path}'{place}: {' '.join(message.split()) or type(error).__name__}"


def is_lazy_config(path: str) -> bool:
    """Returns whether a file is a LazyConfig (``.py``, or the ``config.yaml`` of a lazy run)."""
    if not path.endswith((".yaml", ".yml")):
        return True
    # By Detectron2's convention yacs keys are upper case; lazy keys (also ours) are lower case.
    return any(line.startswith("model:") for line in Path(path).read_text().splitlines())
