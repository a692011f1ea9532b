"""Registers data sets, also repeatedly, as happens when a config is loaded again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

_PLAIN = (str, bytes, int, float, bool, Path, type(None))


def register_coco(name: str, json_file: str | Path, image_root: str | Path) -> None:
    """Registers a data set in COCO's JSON format; repeating the same call changes nothing.

    Args:
        name: Name in Detectron2's catalogs.
        json_file: COCO annotation file. Nothing is read before the data set is used.
        image_root: Folder that the images' ``file_name`` is relative to.

    Raises:
        ValueError: The name belongs to another data set.
    """
    json_file, image_root = str(json_file), str(image_root)
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, json_file, image_root)
        return
    metadata = MetadataCatalog.get(name)
    registered = metadata.get("json_file"), metadata.get("image_root")
    if registered != (json_file, image_root):
        raise ValueError(
            f"the data set '{name}' is already registered with {registered[0]} and "
            f"{registered[1]}: choose another name for {json_file} and {image_root}"
        )


@contextmanager
def repeated_registration() -> Iterator[None]:
    """Makes ``DatasetCatalog.register`` accept a repeated registration within its context.

    Used while a config file is executed: a file that registers its data sets can then be loaded any
    number of times in one process. A different loader under a registered name is still an error.
    """
    if "register" in vars(DatasetCatalog):  # a config that loads another config
        yield
        return
    register = DatasetCatalog.register

    def register_again(name: str, func: Callable[[], list[dict]]) -> None:
        if name in DatasetCatalog and _content(DatasetCatalog[name]) == _content(func):
            return
        if name in DatasetCatalog:
            raise ValueError(
                f"the data set '{name}' is already registered with another content: choose "
                "another name"
            )
        register(name, func)

    DatasetCatalog.register = register_again
    try:
        yield
    finally:
        del DatasetCatalog.register


def _content(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Describes a data set loader so that two executions of its config file can be compared.

    Each execution creates new functions and objects, so they are compared by their code and by the
    values that they hold. Values that cannot be compared in this way, such as arrays, are compared
    only by type.

    Args:
        value: A loader, or a value that it uses.
        above: Ids of the values through which this one was reached, to stop at reference cycles.
    """
    if isinstance(value, _PLAIN):
        return value
    if id(value) in above:
        return None
    content = functools.partial(_content, above=(*above, id(value)))
    if isinstance(value, dict):
        return [(content(key), content(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return list(map(content, value))
    if isinstance(value, functools.partial):
        return list(map(content, (value.func, value.args, value.keywords)))
    if inspect.ismethod(value):
        return content(value.__func__), content(value.__self__)
    if inspect.isfunction(value):
        names = {name: value.__globals__.get(name) for name in value.__code__.co_names}
        of_file = {name: x for name, x in names.items() if _is_compared(x, value.__globals__)}
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        held = (value.__defaults__, value.__kwdefaults__, cells, of_file)
        return value.__code__, *map(content, held)
    if isinstance(value, type):
        return value.__qualname__
    code = getattr(type(value).__call__, "__code__", None) if callable(value) else None
    return type(value).__qualname__, code, content(getattr(value, "__dict__", {}))


def _is_compared(value: Any, names_of_file: dict[str, Any]) -> bool:
    """Returns whether a global used by a function is a setting or a function of the same file."""
    if inspect.isfunction(value):
        return value.__globals__ is names_of_file
    return isinstance(value, (*_PLAIN, list, tuple, dict))
