"""COCO evaluation with average recall."""

from __future__ import annotations

from detectron2.evaluation import COCOEvaluator


class COCOEvaluatorWithAR(COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` that also reports ``AR``.

    ``AR`` is COCO's average recall at the largest number of detections per image (100 unless
    ``max_dets_per_image`` says otherwise), over IoU 0.50:0.95, in percent.
    """

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        # Entry 8 of COCO's summary is AR at the largest number of detections.
        recall = float(coco_eval.stats[8]) if coco_eval is not None else float("nan")
        results["AR"] = recall * 100 if recall >= 0 else float("nan")
        return results
