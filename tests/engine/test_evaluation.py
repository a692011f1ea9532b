import math

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from atss_d2.engine.evaluation import COCOEvaluatorWithAR

pytestmark = pytest.mark.usefixtures("toy_data")


def evaluate(tmp_path, shifts: list[float]) -> dict:
    """Detects the one object of each image, moved by so many pixels; none where it is None."""
    evaluator = COCOEvaluatorWithAR("toy_val", output_dir=str(tmp_path))
    evaluator.reset()
    for image, shift in zip(DatasetCatalog.get("toy_val"), shifts, strict=True):
        (annotation,) = image["annotations"]
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        found = Instances((image["height"], image["width"]))
        found.pred_boxes = Boxes(torch.tensor([box]) + (shift or 0))
        found.scores = torch.tensor([0.9])
        found.pred_classes = torch.tensor([annotation["category_id"]])
        evaluator.process([image], [{"instances": found if shift is not None else found[:0]}])
    return evaluator.evaluate()["bbox"]


def test_recall_of_perfect_detections(tmp_path):
    results = evaluate(tmp_path, [0, 0, 0, 0])
    assert results["AR"] == pytest.approx(100)
    assert results["AP"] == pytest.approx(100)


def test_recall_is_the_mean_over_classes_and_thresholds(tmp_path):
    # Images 0 and 2 show one class, 1 and 3 the other: recalls are 1/2 and 1.
    assert evaluate(tmp_path, [0, 0, None, 0])["AR"] == pytest.approx(75)
    # Moved by a twentieth of its side or so, an object is found at the lower thresholds only.
    assert 40 < evaluate(tmp_path, [2, 2, 2, 2])["AR"] < 95


def test_without_any_detection(tmp_path):
    assert math.isnan(evaluate(tmp_path, [None] * 4)["AR"])
