"""Detectron2's COCO evaluator, with boxes evaluated by hotcoco if it is installed.

pycocotools takes a minute for the 5,000 images of COCO's validation set, hotcoco less than a
second, for the same numbers to the last bit. Whatever the two treat differently is left to
Detectron2's evaluator: ids that are not positive integers, annotations without area or iscrowd.

Shapes: M annotations, D detections.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

try:
    import hotcoco
except ImportError:
    hotcoco = None

# Process in which hotcoco has started its threads, without which a fork of it would wait for ever.
_process_of_threads: int | None = None
_MAX_ID = 2**53  # ids go through float64
_MAX_DETS = [1, 10, 100]


class FastCOCOEvaluator(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` that evaluates boxes with hotcoco (``pip install hotcoco``).

    Masks, keypoints, other numbers of detections per image, and ground truth that the two do not
    treat alike are evaluated as Detectron2 does; so is everything if hotcoco is not installed or
    the environment variable ``ATSS_D2_EVALUATION`` is ``pycocotools``.

    Only the first process reads the ground truth; the others send it their detections.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        use_hotcoco: bool = True,
        use_fast_impl: bool = True,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            dataset_name: As in Detectron2, like the other arguments.
            tasks: Kinds of detections that are evaluated.
            distributed: Whether detections of all processes are collected.
            output_dir: Folder for the detections.
            use_hotcoco: Whether hotcoco may be used.
            use_fast_impl: Whether Detectron2's compiled evaluation may be used where hotcoco is
                not; with both False, it is pycocotools.
            **kwargs: Detectron2's other arguments.
        """
        is_forced = os.environ.get("ATSS_D2_EVALUATION", "").lower() == "pycocotools"
        self._use_hotcoco = use_hotcoco and not is_forced and hotcoco is not None
        use_fast_impl = use_fast_impl and not is_forced
        self._ground_truth: _GroundTruth | None = None
        if distributed and not comm.is_main_process():
            self._logger = logging.getLogger(__name__)
            self._distributed, self._output_dir, self._tasks = distributed, output_dir, tasks
            self._cpu_device = torch.device("cpu")
            self._metadata = MetadataCatalog.get(dataset_name)
            return
        # With hotcoco, the message about a missing compiled evaluation would mislead.
        has_compiled = coco_evaluation.COCOeval_opt is not coco_evaluation.COCOeval
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            use_fast_impl=use_fast_impl and (has_compiled or not self._use_hotcoco),
            **kwargs,
        )
        if self._use_hotcoco and self._do_evaluation:
            self._ground_truth = _GroundTruth.from_coco(self._coco_api.dataset)

    def _eval_predictions(self, predictions: list[dict], img_ids: Any = None) -> None:
        results = list(itertools.chain.from_iterable(x["instances"] for x in predictions))
        columns = None
        if (
            self._ground_truth is not None
            and _process_of_threads in (None, os.getpid())
            and img_ids is None
            and list(self._max_dets_per_image) == _MAX_DETS
            and list(self._tasks or self._tasks_from_predictions(results)) == ["bbox"]
        ):
            columns = self._columns(results)
        if columns is None:
            super()._eval_predictions(predictions, img_ids=img_ids)
            return
        for result, category_id in zip(results, columns[:, 6].astype(np.int64).tolist()):
            result["category_id"] = category_id
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            with PathManager.open(path, "w") as file:
                file.write(json.dumps(results))
        self._logger.info(f"Evaluating boxes with hotcoco {hotcoco.__version__} ...")
        evaluation = self._ground_truth.evaluate(columns)
        self._results["bbox"] = self._derive_coco_results(
            evaluation, "bbox", class_names=self._metadata.get("thing_classes")
        )

    def _columns(self, results: list[dict]) -> np.ndarray | None:
        """Returns (D, 7): image id, box, score and category id of the file.

        None if Detectron2 must evaluate the results, because there are none, they are not those of
        this data set, or have values that the two treat differently.
        """
        if not results:
            return None
        try:
            columns = np.array(
                [(x["image_id"], *x["bbox"], x["score"], x["category_id"]) for x in results],
                np.float64,
            )
        except (TypeError, ValueError):
            return None
        if columns.shape[1:] != (7,) or not np.isfinite(columns).all():
            return None
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is not None:
            ids = sorted(mapping, key=mapping.get)
            classes = columns[:, 6]
            if [mapping[i] for i in ids] != list(range(len(ids))) or classes.max() >= len(ids):
                return None
            columns[:, 6] = np.array(ids, np.float64)[classes.astype(np.int64)]
        is_known = np.isin(columns[:, 0], self._ground_truth.image_ids).all()
        return columns if is_known else None


class _GroundTruth:
    """Annotations that hotcoco and pycocotools treat alike."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.image_ids = np.array([x["id"] for x in content["images"]], np.float64)
        self._coco = hotcoco.COCO(content)

    @classmethod
    def from_coco(cls, content: dict[str, Any]) -> _GroundTruth | None:
        """Takes what boxes need from the content of a file; None if it is unusual."""
        try:
            plain = {
                "images": [{"id": x["id"], "height": 0, "width": 0} for x in content["images"]],
                "categories": [
                    {"id": x["id"], "name": str(x["id"])} for x in content["categories"]
                ],
                "annotations": [
                    {key: x[key] for key in ("id", "image_id", "category_id", "bbox", "area")}
                    | {"iscrowd": int(x["iscrowd"])}
                    for x in content["annotations"]
                ],
            }
            return cls(plain) if _is_usual(plain) else None
        except (KeyError, TypeError, ValueError):
            return None

    def evaluate(self, columns: np.ndarray) -> Any:
        """Evaluates detections (D, 7) and prints the summary.

        Returns:
            An object with ``stats`` and ``eval`` like those of pycocotools.
        """
        global _process_of_threads
        _process_of_threads = os.getpid()
        evaluation = hotcoco.COCOeval(self._coco, self._coco.loadRes(columns), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation


def _is_usual(content: dict[str, list[dict]]) -> bool:
    # pycocotools takes a match with the annotation 0 for no match.
    for kind, lowest in (("images", 0), ("categories", 0), ("annotations", 1)):
        ids = [x["id"] for x in content[kind]]
        if len(set(ids)) < len(ids):
            return False
        if not all(type(i) is int and lowest <= i < _MAX_ID for i in ids):
            return False
    return all(
        len(x["bbox"]) == 4
        and all(type(value) in (int, float) and math.isfinite(value) for value in x["bbox"])
        and type(x["area"]) in (int, float)
        and math.isfinite(x["area"])
        and type(x["image_id"]) is type(x["category_id"]) is int
        for x in content["annotations"]
    )
