"""Passes class names and their original ids from a data set to its detections.

``categories`` is a list in the order of a model's class indices 0..K-1, each entry a dict
``{"id": ..., "name": ...}`` as in COCO's JSON. It is saved in the config (a LazyConfig's key
``categories``, yaml's ``MODEL.ATSS.CATEGORIES``) and in every checkpoint of a training run, so that
detections can be named without the data set.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from .checks.cache import ResultCache
from .checks.json_file import read_value
from .errors import DataError

logger = logging.getLogger(__name__)

Categories = list[dict[str, Any]]
_LARGE = 1 << 26  # bytes of a file that takes seconds


def parse_categories(value: Any, source: str = "categories") -> Categories:
    """Checks a list of categories and returns it as plain dicts of ``id`` and ``name``.

    Args:
        value: A sequence of mappings with ``id`` and ``name``, or one mapping of ids to names, as a
            .py config has it (LazyConfig drops lists). None or an empty value gives ``[]``.
        source: Where the value was found, for errors.

    Raises:
        ValueError: ``value`` is anything else, or an id occurs twice.
    """
    if value is None:
        return []
    if isinstance(value, Mapping):
        value = [{"id": i, "name": name} for i, name in value.items()]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{source} must be a list of {{id, name}}, got {value!r}")
    categories = []
    for entry in value:
        if not isinstance(entry, Mapping) or not {"id", "name"} <= set(entry):
            raise ValueError(f"{source}: an entry must have an id and a name, got {entry!r}")
        if isinstance(entry["id"], bool) or not isinstance(entry["id"], int):
            raise ValueError(f"{source}: the id of {entry['name']!r} is not an integer")
        categories.append({"id": entry["id"], "name": str(entry["name"])})
    ids = [category["id"] for category in categories]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"{source}: the id {twice} occurs twice")
    return categories


def categories_of_dataset(name: str) -> Categories:
    """Returns the categories of a registered data set, even if it is not loaded yet.

    Args:
        name: Its name in Detectron2's catalogs.

    Returns:
        The categories from the metadata or, before the data set is loaded, from its JSON file;
        ``[]`` if neither has them.

    Raises:
        FileNotFoundError: The metadata names a JSON file that does not exist.
        ValueError: The file is not JSON, or its ``categories`` are not COCO's.
    """
    if name not in MetadataCatalog:
        return []
    metadata = MetadataCatalog.get(name)
    names, path = metadata.get("thing_classes"), metadata.get("json_file")
    to_index = metadata.get("thing_dataset_id_to_contiguous_id")
    if path and not (names and to_index):
        return read_categories(path)
    ids = {index: i for i, index in (to_index or {}).items()}
    return [{"id": int(ids.get(i, i)), "name": str(n)} for i, n in enumerate(names or [])]


def read_categories(path: str) -> Categories:
    """Reads ``categories`` from a COCO JSON file, sorted by id as Detectron2 sorts its classes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, or its ``categories`` are not COCO's.
    """
    local = PathManager.get_local_path(path)
    try:
        state = os.stat(local)
        categories = _raw_categories(local, state.st_mtime_ns, state.st_size)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no annotation file '{path}': correct the path where the "
            "data set is registered"
        ) from None
    except (OSError, DataError) as error:
        raise ValueError(str(error)) from None
    parsed = parse_categories(categories, source=f"'{path}': categories")
    return sorted(parsed, key=lambda category: category["id"])


@functools.lru_cache(maxsize=16)
def _raw_categories(path: str, mtime_ns: int, size: int) -> Any:
    """Returns ``categories`` as written in a file, which is parsed again only after a change.

    A run calls this several times before it loads the data, and a large file takes seconds. Those
    of such a file are also remembered for the next start and the other processes.
    """
    if size < _LARGE:
        return read_value(path, "categories")
    remembered = ResultCache(path, "categories")
    categories = remembered.read()
    if categories is None:
        categories = read_value(path, "categories")
        remembered.write(categories)
    return categories


def find_categories(
    checkpoint: Mapping[str, Any],
    configured: Callable[[], Categories],
    datasets: Sequence[str],
    num_classes: int | None,
) -> Categories:
    """Finds the categories of a trained model in the first source that has all of them.

    The sources are the checkpoint, the config, and the data sets, whose files need not exist. Each
    source that is skipped is logged with the reason.

    Args:
        checkpoint: Contents of the checkpoint besides the weights.
        configured: Returns the categories in the config.
        datasets: Names of the config's data sets.
        num_classes: K; None if the model does not have it.

    Returns:
        The categories of the K classes; ``[]`` if no source has them.
    """
    sources: list[tuple[str, Callable[[], Categories]]] = [
        ("the checkpoint", lambda: parse_categories(checkpoint.get("categories"))),
        ("the config", configured),
    ]
    for name in dict.fromkeys(datasets):
        sources.append((f"the data set '{name}'", functools.partial(categories_of_dataset, name)))
    for source, read in sources:
        try:
            categories = read()
        except (OSError, ValueError) as error:  # for example missing annotations
            logger.info(f"No class names from {source}: {error}")
            continue
        if categories and num_classes in (None, len(categories)):
            return categories
        if categories:
            logger.warning(
                f"The class names of {source} are ignored: they are {len(categories)}, but the "
                f"model has {num_classes} classes"
            )
    logger.warning(
        "The names of the classes are unknown, so their numbers from 0 are used: neither the "
        "checkpoint, nor the config, nor its data sets have them. Set `categories` of the config "
        "to {id: 'name', ...}, in yaml MODEL.ATSS.CATEGORIES to [{'id': ..., 'name': ...}, ...]"
    )
    return []
