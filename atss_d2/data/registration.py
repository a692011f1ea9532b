"""Registration of data sets that may be repeated, as happens when a config is loaded again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

_PLAIN = (str, int, float, bool, tuple, Path, type(None))


def register_coco(name: str, json_file: str | Path, image_root: str | Path) -> None:
    """Registers a data set in COCO's JSON format; the same call again changes nothing.

    Args:
        name: Name in Detectron2's catalogs.
        json_file: COCO's annotation file. Nothing is read before the data set is used.
        image_root: Folder that the ``file_name`` of the images are relative to.

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
    """Within it, ``DatasetCatalog.register`` accepts again what it holds already.

    For the time in which a config file is executed: a file that registers its data sets can then be
    loaded any number of times in one process. Another loader under a name that is taken is still
    an error.
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


def _content(function: Any) -> Any:
    """What a loader of a data set does, comparable with that of another execution of its file."""
    if isinstance(function, functools.partial):
        return _content(function.func), function.args, function.keywords
    code = getattr(function, "__code__", None)
    if code is None:
        return function
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    names = {name: function.__globals__.get(name) for name in code.co_names}
    plain = {name: value for name, value in names.items() if isinstance(value, _PLAIN)}
    return code, function.__defaults__, cells, plain
