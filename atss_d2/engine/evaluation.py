"""COCO evaluation with average recall, and the evaluator for each type of data set."""

from __future__ import annotations

from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)

from ..data import DataError
from .coco_evaluation import FastCOCOEvaluator


class COCOEvaluatorWithAR(FastCOCOEvaluator):
    """``COCOEvaluator`` that also reports ``AR``.

    ``AR`` is COCO's average recall at the largest number of detections per image (100 unless
    ``max_dets_per_image`` says otherwise), over IoU 0.50:0.95, in percent.
    """

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        # Entry 8 of COCO's summary is AR at the largest number of detections.
        recall = float(coco_eval.stats[8]) if coco_eval is not None else float("nan")
        results["AR"] = recall * 100 if recall >= 0 else float("nan")
        return results


def build_evaluator(dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
    """Builds the evaluator for a data set's type, as in Detectron2's train_net.py.

    Args:
        dataset_name: A registered data set. ``evaluator_type`` in its metadata is its type:
            "pascal_voc", "lvis", "coco" or another type of COCO annotations. A data set without a
            type is evaluated as COCO, after conversion by Detectron2.
        output_dir: Folder for the detections. Pascal VOC writes none.

    Raises:
        DataError: The evaluation of the type does not use boxes, or the library for LVIS is not
            installed.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    if kind == "lvis":
        try:
            return LVISEvaluator(dataset_name, output_dir=output_dir)
        except ImportError as error:
            raise DataError(
                f"the data set '{dataset_name}' is evaluated by the library lvis: pip install lvis"
            ) from error
    if kind.startswith("coco"):
        return FastCOCOEvaluator(dataset_name, output_dir=output_dir)
    raise DataError(
        f"the data set '{dataset_name}' is of type '{kind}', whose evaluation does not take boxes; "
        "coco, lvis and pascal_voc do: set evaluator_type in its metadata, or override "
        "Trainer.build_evaluator"
    )
