import contextlib
import io

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from atss_d2.visualization import match_detections


def _instances(boxes, scores, classes):
    return Instances(
        (100, 100),
        pred_boxes=Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.as_tensor(scores, dtype=torch.float32),
        pred_classes=torch.as_tensor(classes, dtype=torch.int64),
    )


def _match(detections, boxes, classes, is_crowd, **kwargs):
    return match_detections(
        detections,
        Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        torch.as_tensor(classes, dtype=torch.int64),
        torch.as_tensor(is_crowd, dtype=torch.bool),
        **kwargs,
    )


def test_a_box_is_found_once_by_the_highest_score_of_its_class():
    detections = _instances(
        [
            [0, 0, 10, 10],  # exact, but another is surer
            [1, 0, 11, 10],  # IoU 9/11, highest score
            [20, 0, 30, 10],  # exact box of another class
            [40, 0, 50, 4],  # IoU 0.4
            [60, 60, 64, 64],  # in the crowd
        ],
        [0.5, 0.9, 0.8, 0.7, 0.6],
        [0, 0, 0, 0, 0],
    )
    matches = _match(
        detections,
        [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [50, 50, 90, 90]],
        [0, 1, 0, 0],
        [False, False, False, True],
    )
    assert matches.is_hit.tolist() == [False, True, False, False, False]
    assert matches.is_ignored.tolist() == [False, False, False, False, True]
    assert matches.is_false_alarm.tolist() == [True, False, True, True, False]
    assert matches.is_found.tolist() == [True, False, False, False]


def test_threshold_is_the_least_iou():
    detections = _instances([[0, 0, 10, 5]], [0.9], [0])  # IoU 0.5
    assert _match(detections, [[0, 0, 10, 10]], [0], [False]).is_hit.all()
    assert not _match(detections, [[0, 0, 10, 10]], [0], [False], iou_thresh=0.6).is_hit.any()


@pytest.mark.parametrize(("num_detections", "num_boxes"), [(0, 0), (3, 0), (0, 3)])
def test_nothing_to_match(num_detections, num_boxes):
    box = [[0, 0, 10, 10]]
    matches = _match(
        _instances(box * num_detections, [0.5] * num_detections, [0] * num_detections),
        box * num_boxes,
        [0] * num_boxes,
        [False] * num_boxes,
    )
    assert matches.is_hit.tolist() == matches.is_ignored.tolist() == [False] * num_detections
    assert matches.is_found.tolist() == [False] * num_boxes


def _coco_eval_matches(detections, boxes, classes, is_crowd):
    """Sets of detections (hit, ignored) and boxes (found) by pycocotools."""

    def xywh(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": c, "name": str(c)} for c in range(3)],
        "annotations": [
            {
                "id": j + 1,
                "image_id": 1,
                "category_id": int(classes[j]),
                "bbox": xywh(box),
                "area": 1.0,
                "iscrowd": int(is_crowd[j]),
            }
            for j, box in enumerate(boxes.tolist())
        ],
    }
    coco.createIndex()
    results = [
        {"image_id": 1, "category_id": int(c), "bbox": xywh(box), "score": score}
        for box, score, c in zip(
            detections.pred_boxes.tensor.tolist(),
            detections.scores.tolist(),
            detections.pred_classes.tolist(),
        )
    ]
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.areaRng = [[0, 1e10]]
    evaluation.evaluate()
    hit, ignored, found = set(), set(), set()
    for image in filter(None, evaluation.evalImgs):
        for i, gt, ignore in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0]):
            if gt and ignore:
                ignored.add(i - 1)
            elif gt:
                hit.add(i - 1)
                found.add(int(gt) - 1)
    return hit, ignored, found


@pytest.mark.parametrize("seed", range(20))
def test_equals_coco_eval(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (15, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 30, (15, 2))], axis=1)
    classes, is_crowd = rng.integers(0, 3, 15), rng.random(15) < 0.2
    # Several jittered copies of each box, so that detections compete.
    source = rng.integers(0, 15, 40)
    detections = _instances(
        boxes[source] + rng.normal(0, 3, (40, 4)),
        rng.permutation(40) / 40 + 0.01,
        np.where(rng.random(40) < 0.8, classes[source], rng.integers(0, 3, 40)),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        hit, ignored, found = _coco_eval_matches(
            detections, torch.as_tensor(boxes, dtype=torch.float32), classes, is_crowd
        )
    matches = _match(detections, boxes, classes, is_crowd)
    assert set(matches.is_hit.nonzero()[:, 0].tolist()) == hit
    assert set(matches.is_ignored.nonzero()[:, 0].tolist()) == ignored
    assert set(matches.is_found.nonzero()[:, 0].tolist()) == found
