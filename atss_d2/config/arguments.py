"""Reads the arguments of a class or function from a node of a yaml config."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode


def arguments_of(function: Callable) -> dict[str, inspect.Parameter]:
    """Returns the keyword arguments that a function or class takes.

    If the constructor of a class takes ``**kwargs``, those of its base class are included.
    """
    if not inspect.isclass(function):
        return dict(inspect.signature(function).parameters)
    arguments: dict[str, inspect.Parameter] = {}
    for base in function.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters
        for name, parameter in list(parameters.items())[1:]:
            arguments.setdefault(name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return {
        name: p for name, p in arguments.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }


def kwargs_from(node: CfgNode, function: Callable) -> dict[str, Any]:
    """Reads the arguments that a node has keys for.

    Args:
        node: Its key ``TEST_NMS_THRESH`` is the argument ``test_nms_thresh``. Child nodes are left
            out.
        function: The function or class that takes the arguments.
    """
    return {
        name: node[name.upper()]
        for name in arguments_of(function)
        if name.upper() in node and not isinstance(node[name.upper()], CfgNode)
    }


def node_name(kind: type) -> str:
    """Returns the key of the node for a user's class: ``MY_RULE`` for ``MyRule``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind.__name__).upper()
