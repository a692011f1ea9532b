"""Imports go downwards: DESIGN's rooms, in the order in which they may know each other."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "atss_d2"
# A room imports those before it. Modules of the package's top level are rooms, too.
ORDER = [
    "warning_filters",
    "plain",
    "data",
    "config",
    "modeling",
    "integration",
    "checkpoint",
    "export",
    "visualization",
    "engine",
    "predictor",
    "commands",
]


def module_name(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path) -> set[tuple[str, ...]]:
    """Modules of the package that a module imports, also within functions."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else ()
        base += tuple((node.module or "").split(".")) if node.module else ()
        if base[:1] == ("atss_d2",):
            for alias in node.names:
                target = (*base, alias.name)
                found.add(target if target in MODULES else base)
    return found - {name, ("atss_d2",)}


@pytest.mark.parametrize("name", MODULES, ids=".".join)
def test_no_import_goes_upwards(name):
    if len(name) > 1:
        allowed = ORDER[: ORDER.index(name[1]) + 1]
        rooms = {target[1] for target in imports(MODULES[name])}
        assert rooms <= set(allowed), f"{name[1]} may import {allowed}"


def test_no_circle_of_imports():
    graph = {name: imports(path) for name, path in MODULES.items() if len(name) > 1}
    for name in graph:  # a package imports its modules, which may import each other
        graph[name] = {target for target in graph[name] if target[: len(name)] != name}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_only_commands_import_late():
    """Commands import what is heavy after parsing; other rooms have no reason to."""
    late = {
        ".".join(name)
        for name, path in MODULES.items()
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        and any(isinstance(n, ast.ImportFrom) and n.level for n in ast.walk(function))
        and name[1:2] != ("commands",)
    }
    assert late == {"atss_d2.data.custom.reading"}  # an optional dependency
