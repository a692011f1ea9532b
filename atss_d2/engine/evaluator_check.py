"""Runs an evaluator on detections made of its own annotations, before training needs it."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig

from ..config import target_of, view_of
from ..data import DataError
from ..data.checks.dataset import check_coco
from ..data.checks.json_file import JsonContent
from .console import quiet_evaluation
from .data_check import explained
from .dataset_checks import is_coco_file, on_first_process, sentence_of
from .datasets import loader_arguments

logger = logging.getLogger(__name__)

_NUM_IMAGES = 10
_MAX_OBJECTS = 100  # of an image; COCO's evaluation ignores further detections
# Faults that make the evaluation stop, or go wrong without notice.
_OF_EVALUATION = (
    *("annotation_id_double", "annotation_id_missing", "annotation_id_zero", "annotation_id_type"),
    *("area_missing", "area_value", "crowd_missing", "crowd_value", "image_id_double"),
)
_PERFECT, _BROKEN = 99.0, 50.0  # AP


def check_config_evaluator(cfg: DictConfig, dataset: Sequence[Any] | None) -> None:
    """Builds ``dataloader.test`` and checks the evaluator, as :func:`check_evaluator` does.

    Args:
        cfg: A LazyConfig.
        dataset: Dicts of the test set; None if unknown, then no loader is built.

    Raises:
        DataError: The loader or the evaluator cannot be built, or the evaluator fails.
    """
    node = cfg.dataloader.get("evaluator")
    if node is None or cfg.train.get("check_data") is False:
        return
    if dataset is not None:
        with explained(cfg, "test"):
            loader = cfg.dataloader.test
            target_of(loader)(dataset=dataset, **loader_arguments(loader))
    names = view_of(cfg).dataset_names("test")
    check_evaluator(lambda: instantiate(node), dataset, ", ".join(names))


def check_yaml_evaluators(cfg: CfgNode, build: Callable[[CfgNode, str], DatasetEvaluator]) -> None:
    """Checks the evaluator of each set in ``DATASETS.TEST``, as :func:`check_evaluator` does."""
    if view_of(cfg).get("MODEL.ATSS.CHECK_DATA") is False:
        return
    for name in cfg.DATASETS.TEST:

        def run(name: str = name) -> None:
            dataset = None  # the evaluator reads the same file
            if not is_coco_file(name):
                with explained(cfg, "test"):
                    dataset = DatasetCatalog.get(name)
            with contextlib.suppress(NotImplementedError):  # Detectron2 then goes without
                _check(lambda: build(cfg, name), dataset, name)

        on_first_process(run)


def check_evaluator(
    build: Callable[[], DatasetEvaluator], dataset: Sequence[Any] | None, name: str
) -> None:
    """Builds an evaluator and, if it is COCO's, evaluates the annotations of some images.

    Detections that are equal to the annotations must get an AP of 100. The evaluation runs in the
    first process only; evaluators of other kinds are only built there, as they may talk to others.

    Args:
        build: Builds the evaluator.
        dataset: Dicts of the test set; None if unknown.
        name: Name of the test set, for messages.

    Raises:
        DataError: The evaluator cannot be built or fails; raised in all processes.
    """
    on_first_process(lambda: _check(build, dataset, name))


def _check(build: Callable[[], DatasetEvaluator], dataset: Sequence[Any] | None, name: str) -> None:
    try:
        with quiet_evaluation():
            evaluator = build()
            if _is_coco(evaluator):
                _evaluate_truth(evaluator, dataset, name)
    except (DataError, NotImplementedError):
        raise
    except Exception as error:  # evaluators and their libraries raise any type
        reason = " ".join(str(error).split())
        raise DataError(
            f"the evaluation of the test set '{name}' fails: {type(error).__name__}: {reason}"
        ) from error


def _is_coco(evaluator: DatasetEvaluator) -> bool:
    module = type(evaluator).__module__
    return (
        isinstance(evaluator, COCOEvaluator)
        and module.startswith(("detectron2.", "atss_d2."))
        and hasattr(evaluator, "_coco_api")
    )


def _evaluate_truth(evaluator: COCOEvaluator, dataset: Sequence[Any] | None, name: str) -> None:
    coco = evaluator._coco_api
    if "annotations" not in coco.dataset:
        raise DataError(
            f"the test set '{name}' has no annotations to evaluate with: choose one that has, or "
            "remove dataloader.evaluator"
        )
    known = set(coco.imgs)
    ids = [x["image_id"] for x in dataset or () if isinstance(x, dict) and "image_id" in x]
    strange = [i for i in ids if i not in known]
    if strange:
        raise DataError(
            f"{len(strange)} of {len(ids)} images of the test set '{name}' are not in the file "
            f"that the evaluation reads ('{evaluator._metadata.get('json_file')}'), e.g. image_id "
            f"{strange[0]!r}: delete it if it is an old copy"
        )
    file = check_coco(JsonContent(coco.dataset), None, "", role="val", place=name)
    file.report.findings = [x for x in file.report.errors if x.code in _OF_EVALUATION]
    if file.report.findings:
        raise DataError(sentence_of(file.report))
    chosen = [i for i in ids or sorted(known) if 0 < len(_objects(coco, i)) <= _MAX_OBJECTS]
    chosen = chosen[:_NUM_IMAGES]
    if not chosen:
        return
    # Neither waits for other processes nor writes files.
    evaluator._distributed, evaluator._output_dir = False, None
    to_index = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
    evaluator.reset()
    for i in chosen:
        image = {"image_id": i, **{key: coco.imgs[i].get(key) for key in ("height", "width")}}
        instances = _as_detections(_objects(coco, i), image, to_index)
        evaluator.process([image], [{"instances": instances}])
    results = evaluator.evaluate(img_ids=chosen)
    ap = results.get("bbox", {}).get("AP", math.nan)
    if not ap >= _PERFECT:
        text = (
            f"detections that are equal to the annotations of the test set '{name}' get an AP of "
            f"{ap:.1f} instead of 100 (images {', '.join(map(repr, chosen[:3]))}, ...)"
        )
        if not ap >= _BROKEN:
            raise DataError(f"{text}: no model can be evaluated on them")
        logger.warning(text)


def _objects(coco: Any, image_id: Any) -> list[dict]:
    return [
        a
        for a in coco.imgToAnns.get(image_id, ())
        if not a.get("iscrowd") and a["bbox"][2] > 0 and a["bbox"][3] > 0
    ]


def _as_detections(
    annotations: Sequence[dict], image: dict, to_index: dict[int, int] | None
) -> Instances:
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    classes = [a["category_id"] for a in annotations]
    classes = [to_index[c] if to_index else c for c in classes]
    instances = Instances((int(image["height"] or 0), int(image["width"] or 0)))
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.linspace(1, 0.5, len(classes))
    instances.pred_classes = torch.tensor(classes)
    return instances
