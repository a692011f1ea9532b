"""Starts the commands of atss_d2 without importing torch, so that ``--help`` is fast.

After ``pip install``, type ``atss-d2 COMMAND ...``; in a checkout, ``train_net.py`` and the scripts
in ``tools/`` start the same commands. Each command is a file in ``atss_d2/commands/``.

``import atss_d2`` registers models in Detectron2 and takes seconds. A command parses its arguments
first, so its module is imported here without the package around it. So is ``atss_d2.plain``, which
is all that ``predict-exported`` needs for an .onnx file. When a command imports the rest of
``atss_d2``, ``atss_d2/__init__.py`` runs as usual.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

COMMANDS = {
    "start-project": "write a config for your own data set",
    "check-dataset": "find what is wrong with a data set",
    "train": "train or evaluate a model",
    "predict": "detect objects in images, videos or a webcam's pictures",
    "export": "write a trained model for another runtime",
    "predict-exported": "detect objects with an exported file",
    "replay": "run a training step again that stopped a run",
    "convert-weights": "convert weights of other implementations",
}


def run(command: str, argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        command: A key of :data:`COMMANDS`.
        argv: The command's arguments. Default: those of this process.

    Returns:
        The exit code; 130 after Ctrl-C.
    """
    try:
        module = _import(f"commands.{command.replace('-', '_')}")
        return module.main(None if argv is None else list(argv))
    except KeyboardInterrupt:
        arguments = sys.argv[1:] if argv is None else argv
        hint = "; with --resume, the same command continues from the last checkpoint"
        is_training = command == "train" and "--eval-only" not in arguments
        print(f"interrupted{hint if is_training else ''}", file=sys.stderr)
        return 130
    finally:
        gc.freeze()  # saves 0.8 s: no last search for garbage among torch's objects


def start_rank(args: Any, place: Sequence[Any], connection: Any) -> None:
    """Runs one process of a training, in a process that ``train`` has spawned for it."""
    place = _import("plain.starters").Place(*place)
    try:
        work = _import("commands.train").work
        sys.exit(_import("commands.launching").run_rank(args, place, work, connection))
    finally:
        gc.freeze()  # as above


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the console script ``atss-d2``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"atss_d2 {_version()}")
        return 0
    command, *arguments = argv
    if command not in COMMANDS:
        otherwise = f"commands: {', '.join(COMMANDS)}"
        hint = _import("plain.suggestions").did_you_mean(
            command, COMMANDS, num=1, otherwise=otherwise
        )
        print(f"atss-d2: there is no command '{command}'; {hint}", file=sys.stderr)
        return 2
    sys.argv = [f"atss-d2 {command}", *arguments]  # messages begin with this name
    return run(command)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: atss-d2 COMMAND [arguments]   (atss-d2 COMMAND --help explains them)",
            "",
            *lines,
        ]
    )


def _package_folder() -> Path:
    spec = importlib.util.find_spec("atss_d2")  # does not execute it
    if spec is None or spec.origin is None:
        sys.exit("atss_d2 is not installed: pip install . in its checkout")
    return Path(spec.origin).parent


def _version() -> str:
    text = (_package_folder() / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    return match.group(1) if match else "unknown"


# Packages imported without `atss_d2` around them: they need neither torch nor Detectron2.
_LIGHT = ("commands", "plain")


def _import(module: str) -> ModuleType:
    """Imports a module of the light packages."""
    if "atss_d2" not in sys.modules:
        for name in _LIGHT:
            _import_alone(f"atss_d2.{name}", _package_folder() / name)
    return importlib.import_module(f"atss_d2.{module}")


def _import_alone(package: str, folder: Path) -> None:
    if package in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        package, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.exit(main())
