"""Boxes evaluated by hotcoco have the results of pycocotools, to the last bit."""

import json
import logging
import multiprocessing
import os

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from atss_d2.engine import coco_evaluation
from atss_d2.engine.coco_evaluation import FastCOCOEvaluator
from atss_d2.engine.evaluation import COCOEvaluatorWithAR

needs_hotcoco = pytest.mark.skipif(
    coco_evaluation.hotcoco is None, reason="hotcoco is not installed"
)
NAME = "evaluation_test"
CATEGORIES = [7, 3, 40]  # not sorted, with gaps


def annotation(number: int, image_id: int = 1, category: int = 3, **more) -> dict:
    bbox = more.pop("bbox", [10, 10, 50, 50])
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": bbox,
        "area": bbox[2] * bbox[3],
        "iscrowd": 0,
        **more,
    }


def detection(image_id: int = 1, category: int = 3, score: float = 0.9, bbox=None) -> tuple:
    return image_id, sorted(CATEGORIES).index(category), score, bbox or [10, 10, 50, 50]


def evaluators(path, annotations, num_images, **kwargs):
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640}
            for i in range(num_images)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORIES],
        "annotations": annotations,
    }
    (path / "a.json").write_text(json.dumps(content))
    if NAME in MetadataCatalog:
        MetadataCatalog.remove(NAME)
    ids = {x: i for i, x in enumerate(sorted(CATEGORIES))}
    MetadataCatalog.get(NAME).set(
        json_file=str(path / "a.json"),
        thing_classes=[f"class {i}" for i in ids],
        thing_dataset_id_to_contiguous_id=ids,
    )
    ours = FastCOCOEvaluator(NAME, output_dir=str(path / "ours"), **kwargs)
    theirs = COCOEvaluator(NAME, output_dir=str(path / "theirs"), use_fast_impl=False, **kwargs)
    return ours, theirs


def results(evaluator, detections: list[tuple], num_images: int, **kwargs):
    """Returns the results or the error."""
    evaluator.reset()
    for image_id in range(num_images):
        found = [x for x in detections if x[0] == image_id]
        instances = Instances((480, 640))
        boxes = torch.tensor([x[3] for x in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([x[2] for x in found], dtype=torch.float64)
        instances.pred_classes = torch.tensor([x[1] for x in found], dtype=torch.int64)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    try:
        return evaluator.evaluate(**kwargs)
    except Exception as error:  # pycocotools raises that very class
        return f"{type(error).__name__}: {error}"


def assert_equal(path, annotations, detections, num_images=3, **kwargs) -> bool:
    """Compares both evaluators; returns whether hotcoco was used."""
    ours, theirs = evaluators(path, annotations, num_images, **kwargs)
    used = []
    if ours._ground_truth is not None:
        evaluate = ours._ground_truth.evaluate
        ours._ground_truth.evaluate = lambda columns: used.append(1) or evaluate(columns)
    found = results(ours, detections, num_images)
    expected = results(theirs, detections, num_images)
    np.testing.assert_equal(found, expected)  # takes NaN for equal to NaN, and no tolerance
    name = "coco_instances_results.json"
    written = [path / x / name for x in ("ours", "theirs")]
    if written[1].is_file():
        found, expected = (json.loads(x.read_text()) for x in written)
        keys = ("image_id", "category_id", "bbox", "score")
        assert [[x[k] for k in keys] for x in found] == [[x[k] for k in keys] for x in expected]
    return bool(used)


def without(key: str) -> dict:
    return {k: v for k, v in annotation(1).items() if k != key}


FAR = [100, 100, 30, 30]
CASES = {
    "perfect": ([annotation(1)], [detection()]),
    "crowd": (
        [annotation(1, iscrowd=1), annotation(2, bbox=FAR)],
        [detection(), detection(score=0.5, bbox=[20, 20, 9, 9]), detection(bbox=FAR)],
    ),
    "an ignored annotation, which COCO does not know": (
        [annotation(1, ignore=1), annotation(2, bbox=FAR)],
        [detection()],
    ),
    "a class without annotations": ([annotation(1)], [detection(), detection(category=40)]),
    "a class without detections": ([annotation(1), annotation(2, 2, 7)], [detection()]),
    "no annotations": ([], [detection()]),
    "images without annotations": ([annotation(1, 2)], [detection(0), detection(2)]),
    "duplicates": ([annotation(1)], [detection()] * 3),
    "equal scores": (
        [annotation(1)],
        [detection(bbox=[10, 10, 50, 30]), detection(), detection(2), detection(bbox=FAR)],
    ),
    "the right one is the 101st": (
        [annotation(1)],
        [*[detection(bbox=FAR)] * 100, detection(score=0.8)],
    ),
    "equal scores at the limit": ([annotation(1)], [*[detection(bbox=FAR)] * 100, detection()]),
    "IoUs at the thresholds": (
        [annotation(i + 1, bbox=[0, 60 * i, 100, 50]) for i in range(10)],
        [detection(bbox=[0, 60 * i, 50 + 5 * i, 50], score=0.5 + i / 40) for i in range(10)],
    ),
    "area of a mask, not of the box": (
        [annotation(1, area=100.5), annotation(2, 2, area=96**2 + 1)],
        [detection(), detection(2, bbox=[10, 10, 20, 20])],
    ),
    "areas at the limits": (
        [annotation(1, area=32**2), annotation(2, bbox=[100, 100, 96, 96])],
        [detection(), detection(bbox=[100, 100, 96, 96])],
    ),
    "boxes without an area": (
        [annotation(1, bbox=[5, 5, 0, 0]), annotation(2)],
        [detection(bbox=[5, 5, 0, 0]), detection(score=0.1)],
    ),
    "two objects, one detection": (
        [annotation(1), annotation(2, bbox=[12, 10, 50, 50])],
        [detection(bbox=[11, 10, 50, 50])],
    ),
    "a class that the file does not name": ([annotation(1), annotation(2, 1, 9)], [detection()]),
    "annotations of no image": ([annotation(1), annotation(2, 99)], [detection()]),
}
LEFT_TO_DETECTRON2 = {
    "no detections": ([annotation(1)], []),
    "id 0": ([annotation(0), annotation(1, bbox=FAR)], [detection(), detection(bbox=FAR)]),
    "negative id": ([annotation(-1)], [detection()]),
    "ids twice": ([annotation(1), annotation(1, bbox=FAR)], [detection(), detection(bbox=FAR)]),
    "ids of strings": ([annotation("a")], [detection()]),
    "area missing": ([without("area")], [detection()]),
    "iscrowd missing": ([without("iscrowd")], [detection()]),
    "five numbers": ([annotation(1, bbox=[1, 2, 3, 4, 5])], [detection()]),
    "score NaN": ([annotation(1)], [detection(score=float("nan")), detection(score=0.5)]),
    "a class too many": ([annotation(1)], [(1, 3, 0.5, FAR)]),
}


@needs_hotcoco
@pytest.mark.parametrize("case", CASES)
def test_hard_cases(case, tmp_path):
    assert assert_equal(tmp_path, *CASES[case])


@needs_hotcoco
@pytest.mark.parametrize("case", LEFT_TO_DETECTRON2)
def test_cases_that_are_left_to_detectron2(case, tmp_path):
    assert not assert_equal(tmp_path, *LEFT_TO_DETECTRON2[case])


@needs_hotcoco
@pytest.mark.parametrize("seed", range(12))
def test_random_scenes(seed, tmp_path):
    rng = np.random.default_rng(seed)
    num_images = int(rng.integers(1, 6))

    def box():
        values = np.concatenate([rng.random(2) * 200, rng.lognormal(3.5, 1, 2)])
        return (values.round(0) * 8 if seed % 2 else values).tolist()

    annotations = [
        annotation(
            i + 1,
            int(rng.integers(num_images)),
            int(rng.choice(CATEGORIES[: 2 + seed % 2])),
            bbox=box(),
            area=float(rng.lognormal(7, 2)),
            iscrowd=int(rng.random() < 0.15),
        )
        for i in range(30)
    ]
    detections = []
    for _ in range(300):
        near = annotations[rng.integers(len(annotations))]
        x, y, width, height = near["bbox"] if rng.random() < 0.7 else box()
        width *= rng.choice([1, 0.5, 0.75, 0.95, rng.random()])
        score = round(float(rng.random()), int(rng.choice([1, 2, 9])))
        category = near["category_id"] if rng.random() < 0.8 else int(rng.choice(CATEGORIES))
        detections.append(detection(near["image_id"], category, score, [x, y, width, height]))
    assert assert_equal(tmp_path, annotations, detections, num_images)


@needs_hotcoco
def test_other_limits_and_selected_images_are_left_to_detectron2(tmp_path):
    annotations, detections = (
        [annotation(1), annotation(2, 2)],
        [detection(), detection(2, bbox=FAR)],
    )
    assert not assert_equal(tmp_path, annotations, detections, max_dets_per_image=50)
    ours, theirs = evaluators(tmp_path, annotations, 3)
    found = [results(x, detections, 3, img_ids=[2]) for x in (ours, theirs)]
    np.testing.assert_equal(*found)
    assert found[0]["bbox"]["AP"] == 0


@needs_hotcoco
def test_one_line_says_what_evaluates(tmp_path, caplog, monkeypatch):
    annotations, detections = CASES["perfect"]
    with caplog.at_level(logging.INFO):
        results(evaluators(tmp_path, annotations, 3)[0], detections, 3)
    lines = [x.getMessage() for x in caplog.records]
    assert sum("hotcoco" in x for x in lines) == 1
    assert not any("COCO API" in x or "COCO eval" in x for x in lines)
    monkeypatch.setenv("ATSS_D2_EVALUATION", "pycocotools")
    assert not assert_equal(tmp_path, annotations, detections)
    monkeypatch.delenv("ATSS_D2_EVALUATION")
    assert FastCOCOEvaluator(NAME, use_hotcoco=False)._ground_truth is None


def _put_results(evaluator, detections, queue) -> None:
    queue.put(results(evaluator, detections, 3))


@needs_hotcoco
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_of_a_process_that_used_hotcoco_does_not_wait_for_its_threads(tmp_path):
    annotations, detections = CASES["perfect"]
    ours = evaluators(tmp_path, annotations, 3)[0]
    expected = results(ours, detections, 3)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_put_results, args=(ours, detections, queue))
    child.start()
    try:
        np.testing.assert_equal(queue.get(timeout=60), expected)
    finally:
        child.kill()


@needs_hotcoco
def test_average_recall(tmp_path):
    evaluators(tmp_path, CASES["crowd"][0], 3)
    found = [
        results(COCOEvaluatorWithAR(NAME, use_hotcoco=use), CASES["crowd"][1], 3)["bbox"]["AR"]
        for use in (True, False)
    ]
    assert found[0] == found[1] > 0


def test_without_hotcoco(tmp_path, monkeypatch):
    monkeypatch.setattr(coco_evaluation, "hotcoco", None)
    assert not assert_equal(tmp_path, *CASES["crowd"])


def test_only_the_first_process_reads_the_ground_truth(tmp_path, monkeypatch):
    evaluators(tmp_path, CASES["perfect"][0], 3)
    (tmp_path / "a.json").unlink()
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    gathered = []
    monkeypatch.setattr(comm, "gather", lambda data, dst: gathered.append(data) or [])
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    evaluator = FastCOCOEvaluator(NAME, output_dir=str(tmp_path))
    assert results(evaluator, CASES["perfect"][1], 3) == {}
    assert [len(x["instances"]) for x in gathered[0]] == [0, 1, 0]
