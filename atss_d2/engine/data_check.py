"""Finds problems of the data sets before training: missing files, different classes."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig

from ..config import view_of
from ..data import DataError
from ..data.categories import Categories, categories_of_dataset
from ..data.checks.dataset import compare_categories, count_classes, some_names
from ..plain.suggestions import did_you_mean

_PLACEHOLDERS = ("my_train", "my_val")  # in configs/custom/
# Raised by Detectron2's loaders of annotations for files with unexpected content.
_LOADING_ERRORS = (OSError, LookupError, TypeError, ValueError, AssertionError, AttributeError)


def check_categories(cfg: DictConfig | CfgNode) -> Categories:
    """Compares the categories of the training and test sets with each other and with the model.

    A data set whose categories are unknown until it is loaded (registered by a function) is
    skipped; call this again after loading.

    Args:
        cfg: A config of either kind. If it has no categories, those found are written into it, so
            that they are in ``config.yaml``.

    Returns:
        The categories; ``[]`` if unknown.

    Raises:
        FileNotFoundError: A data set's annotation file does not exist.
        ValueError: The categories differ; the message names the data set, the values and the key.
    """
    found: dict[str, Categories] = {}
    view = view_of(cfg)
    configured = view.categories
    if configured:
        found["the config"] = configured
    for name in view.dataset_names("train", "test"):
        categories = categories_of_dataset(name)
        if categories:
            found[f"the data set '{name}'"] = categories
    if not found:
        return []
    (first, categories), *others = found.items()
    for source, other in others:
        difference = compare_categories(first, categories, source, other)
        if difference:
            raise ValueError(difference)
    key, num_classes = view.num_classes_key, view.num_classes
    if num_classes is not None and num_classes != len(categories):
        assignment = f"{key} {len(categories)}" if key.isupper() else f"{key}={len(categories)}"
        raise ValueError(
            f"{key} is {num_classes}, but {first} has {count_classes(categories)} "
            f"({some_names(categories)}): set {assignment}"
        )
    if not configured:
        # A data set registered by a function has no original ids; its ids count from 0.
        with_ids = [x for x in found.values() if [c["id"] for c in x] != list(range(len(x)))]
        categories = (with_ids or [categories])[0]
        view.categories = categories
    return categories


def check_dataset_files(cfg: DictConfig | CfgNode, *, with_training: bool) -> None:
    """Checks that the data sets are registered and their files exist, without reading any.

    Args:
        cfg: A config of either kind.
        with_training: Whether to check the training sets in addition to the test sets.

    Raises:
        DataError: A check fails; the message names the data set or file and the fix.
    """
    view = view_of(cfg)
    names = view.dataset_names("train" if with_training else "test", "test")
    if any(name not in DatasetCatalog for name in names):
        view.import_targets()
    for name in names:
        if name not in DatasetCatalog and name in _PLACEHOLDERS:
            raise DataError(
                f"'{name}' stands for a data set of your own: tools/start_project.py writes a "
                "config with yours, or register it in a config as docs/custom_dataset.md shows"
            )
        if name not in DatasetCatalog:
            hint = did_you_mean(name, DatasetCatalog.list(), num=2, cutoff=0.85)
            raise DataError(
                f"there is no data set '{name}'{hint and f' ({hint})'}: a config file registers "
                "its own with atss_d2.data.register_coco(name, json_file, image_root)"
            )
        metadata = MetadataCatalog.get(name)
        json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        for path, exists in ((json_file, PathManager.isfile), (image_root, PathManager.isdir)):
            if path and "://" not in path and not exists(path):
                raise DataError(f"the data set '{name}' needs '{path}', which {_not_there(path)}")


def check_images(dataset: Sequence[dict] | None, what: str) -> None:
    """Checks the boxes of a data set, and that its image files are listed in their folders.

    A quick check for loaders that are built without :func:`~.dataset_checks.check_data`.

    Args:
        dataset: Dicts in Detectron2's format; entries of other types are not checked.
        what: Name of the data set in the message.

    Raises:
        DataError: Images are missing, or an annotation has no box; the message names one.
    """
    _check_boxes(dataset, what)
    paths = [x.get("file_name", "") for x in dataset if isinstance(x, dict)]
    paths = [path for path in paths if path and "://" not in path]
    in_folder: dict[str, set[str]] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        try:
            in_folder[folder] = set(os.listdir(folder or "."))
        except OSError:
            in_folder[folder] = set()
    missing = [x for x in paths if os.path.basename(x) not in in_folder[os.path.dirname(x)]]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(paths)} images of the {what} set do not exist, such as "
            f"'{missing[0]}': correct the folder that the data set was registered with, or remove "
            "them from its annotations"
        )


def _check_boxes(dataset: Sequence[dict], what: str) -> None:
    """Checks that each annotation has a box that a mapper accepts."""
    for x in dataset:
        for annotation in x.get("annotations", ()) if isinstance(x, dict) else ():
            box = annotation.get("bbox")
            if isinstance(box, str) or not hasattr(box, "__len__") or len(box) not in (4, 5):
                found = "no bbox" if box is None else f"the bbox {box!r}"
                raise DataError(
                    f"an annotation of '{x.get('file_name')}' in the {what} set has {found}: give "
                    "it the four numbers x, y, width and height"
                )


def infinite_boxes(dataset: Sequence[dict], what: str) -> list[str]:
    """Returns a sentence about boxes with NaN or infinity, if there are any.

    :func:`~.dataset_checks.check_data` refuses them; if it is off, they would vanish silently.

    Args:
        dataset: Dicts in Detectron2's format; entries of other types are not checked.
        what: Name of the data set in the message, "training" or "test".
    """
    first, num = "", 0
    for x in dataset:
        for annotation in x.get("annotations", ()) if isinstance(x, dict) else ():
            try:
                is_finite = math.isfinite(sum(annotation["bbox"]))
            except (LookupError, TypeError, ValueError):  # an error of the mapper
                continue
            if not is_finite:
                num += 1
                first = first or (
                    f"{list(annotation['bbox'])} of '{x.get('file_name')}' (image_id "
                    f"{x.get('image_id')})"
                )
    if not num:
        return []
    effect = (
        "training leaves out boxes with NaN, and cuts infinite ones at the image's border"
        if what == "training"
        else "the evaluation counts them as objects that no detection matches"
    )
    count, have = ("1 box", "has") if num == 1 else (f"{num} boxes", "have")
    return [f"{count} of the {what} set {have} NaN or infinity, e.g. {first}: {effect}"]


@contextlib.contextmanager
def explained(cfg: DictConfig | CfgNode, split: str) -> Iterator[None]:
    """Turns errors from loading a data set into a sentence with its name and file.

    Args:
        cfg: A config of either kind.
        split: "train" or "test".

    Raises:
        DataError: Replaces the error that was raised, which becomes its cause.
    """
    try:
        yield
    except DataError:
        raise
    except _LOADING_ERRORS as error:
        names = view_of(cfg).dataset_names(split)
        files = [
            MetadataCatalog.get(name).get("json_file") for name in names if name in MetadataCatalog
        ]
        place = f"the {split} set {', '.join(map(repr, names))}"
        if isinstance(error, FileNotFoundError) and error.filename:
            path = os.fspath(error.filename)
            raise DataError(f"{place} needs '{path}', which {_not_there(path)}") from error
        source = f" ({', '.join(filter(None, files))})" if any(files) else ""
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise DataError(f"{place}{source} cannot be loaded: {kind}{error}") from error


def _not_there(path: str) -> str:
    if os.path.isdir(path):
        return "is a folder, not a JSON file: give the file in it"
    if "DETECTRON2_DATASETS" in os.environ or not path.startswith("datasets"):
        return "does not exist: correct the path, or put it there"
    return (
        "does not exist: put it there, or set DETECTRON2_DATASETS to the folder that 'datasets' "
        "stands for"
    )
