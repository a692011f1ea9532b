"""Registers the embedded data sets in Detectron2's catalogs, and resolves `atss_d2://` paths.

Registering opens no file; files are opened when a data set is used.
"""

import functools
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathHandler, PathManager

from . import shape_masks, shapes, trees

__all__ = ["DataRootHandler", "dataset_root", "register_datasets"]


def dataset_root() -> Path:
    """Returns the root folder: `DETECTRON2_DATASETS`, or `datasets` in the working directory.

    This is Detectron2's rule, but evaluated at every call, so the variable may be set after import.
    """
    return Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))


class DataRootHandler(PathHandler):
    """Resolves `atss_d2://x` to the file `x` under :func:`dataset_root`.

    This makes file names in configs and metadata independent of the working directory, and the root
    may change after import. The generated shapes are drawn when one of their files is first
    requested; other missing files raise an error that says how to get them.
    """

    PREFIX = "atss_d2://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        self._check_kwargs(kwargs)
        local = self._resolve(path)
        if path.startswith(f"{self.PREFIX}shapes/"):
            shapes.prepare_shapes(dataset_root())
            shape_masks.prepare_masks(local)
        if not local.exists():
            raise FileNotFoundError(
                f"{local} ({path}) does not exist: run `make setup` or `python "
                "tools/prepare_data.py`, or set DETECTRON2_DATASETS to the folder that has it"
            )
        return str(local)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        if not set(mode) <= set("rbt"):
            raise ValueError(f"{path} is read-only, got mode {mode!r}")
        return open(self._get_local_path(path), mode, buffering, **kwargs)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        return self._resolve(path).exists()

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return self._resolve(path).is_file()

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return self._resolve(path).is_dir()

    def _ls(self, path: str, **kwargs: Any) -> list[str]:
        return sorted(os.listdir(self._get_local_path(path)))

    def _resolve(self, path: str) -> Path:
        return dataset_root() / path[len(self.PREFIX) :]


def register_datasets() -> None:
    """Registers the data sets and the `atss_d2://` prefix; a second call changes nothing."""
    PathManager.register_handler(DataRootHandler(), allow_override=True)
    for name in trees.TREES_SPLITS:
        _register(name, trees.annotation_file(name), trees.IMAGES_FOLDER, trees.TREES_CLASSES)
    for name in shapes.SHAPES_SPLITS:
        _register(
            name, shapes.annotation_file(name), shapes.IMAGES_FOLDER, shapes.class_names(name)
        )
    for name, source in shape_masks.MASK_SETS.items():
        json_file = shape_masks.annotation_file(source)
        _register(name, json_file, shapes.IMAGES_FOLDER, shapes.class_names(source))


def _register(name: str, json_file: str, image_root: str, classes: tuple[str, ...]) -> None:
    if name in DatasetCatalog:
        return
    json_file, image_root = DataRootHandler.PREFIX + json_file, DataRootHandler.PREFIX + image_root
    DatasetCatalog.register(name, functools.partial(_load, name, json_file, image_root))
    # Everything that COCOEvaluator reads, so that it also works before the first load.
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=list(classes),
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(classes))},
    )


def _load(name: str, json_file: str, image_root: str) -> list[dict]:
    # The dicts contain plain paths, as user code opens "file_name" with cv2 or PIL.
    return load_coco_json(
        PathManager.get_local_path(json_file), PathManager.get_local_path(image_root), name
    )
