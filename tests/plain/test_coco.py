"""detections.json is read and scored by pycocotools."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from atss_d2.plain.coco import CocoResults, ImageIds, unnamed_categories
from atss_d2.plain.detections import Detections

CATEGORIES = [{"id": 7, "name": "Tür"}, {"id": 3, "name": "cat"}]


def detections(boxes, scores, classes) -> Detections:
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(classes, np.int64),
    )


@pytest.fixture
def results():
    """Three images: two detections, none, and two of which one is wrong."""
    results = CocoResults(CATEGORIES)
    results.add(
        "a.png", (80, 60), detections([[5, 5, 25, 20], [30, 5, 40, 25]], [0.25, 0.5], [0, 1])
    )
    results.add("b.png", (80, 60), detections([], [], []), frame_index=4)
    results.add("c.png", (80, 60), detections([[0, 0, 9, 9], [50, 40, 80, 60]], [0.75, 1], [1, 1]))
    return results


def test_the_content_by_hand(results, tmp_path):
    results.write(tmp_path / "new" / "detections.json")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["detections.json"]
    text = (tmp_path / "new" / "detections.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert content["categories"] == CATEGORIES
    assert content["images"] == [
        {"id": 1, "file_name": "a.png", "width": 80, "height": 60},
        {"id": 2, "file_name": "b.png", "width": 80, "height": 60, "frame_index": 4},
        {"id": 3, "file_name": "c.png", "width": 80, "height": 60},
    ]
    first, second, *_ = content["annotations"]
    assert first == {  # the best of its image
        "id": 1,
        "image_id": 1,
        "category_id": 3,
        "bbox": [30, 5, 10, 20],
        "area": 200,
        "iscrowd": 0,
        "score": 0.5,
    }
    assert (second["bbox"], second["category_id"]) == ([5, 5, 20, 15], 7)
    assert [x["image_id"] for x in content["annotations"]] == [1, 1, 3, 3]
    assert (results.num_images, results.num_detections) == (3, 4)
    assert len(text.splitlines()) == 3 + 2 + 4 + 8  # an entry a line


def test_cocoeval_scores_it(results, tmp_path):
    path = tmp_path / "detections.json"
    results.write(path)
    content = json.loads(path.read_text())
    # The ground truth is what was found, but for a detection and a half.
    truth = [{**x, "score": None} for x in content["annotations"] if x["bbox"] != [0, 0, 9, 9]]
    for x in truth:
        del x["score"]
    (tmp_path / "truth.json").write_text(json.dumps({**content, "annotations": truth}))
    ground_truth = COCO(tmp_path / "truth.json")
    for found in (COCO(path), ground_truth.loadRes(content["annotations"])):
        evaluation = COCOeval(ground_truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        # Everything is found; the wrong detection has a lower score than the right ones of "cat"
        # in its own image, but a higher one than that in image 1: precision 1 and 2/3 -> by
        # interpolation at 101 recalls, 51 of them up to 0.5: (51 x 1 + 50 x 2/3) / 101 for "cat".
        cat = (51 + 50 * 2 / 3) / 101
        assert evaluation.stats[1] == pytest.approx((1 + cat) / 2, abs=1e-6)
        assert evaluation.stats[0] == pytest.approx((1 + cat) / 2, abs=1e-6)
        assert evaluation.stats[8] == 1.0


def test_no_detection_at_all_is_read(tmp_path):
    results = CocoResults(unnamed_categories(2))
    results.add("a.png", (80, 60), detections([], [], []))
    results.write(tmp_path / "detections.json")
    coco = COCO(tmp_path / "detections.json")
    assert coco.getAnnIds() == []
    assert coco.loadCats(coco.getCatIds()) == [{"id": 0, "name": "0"}, {"id": 1, "name": "1"}]


def test_image_ids_of_annotations(tmp_path):
    path = tmp_path / "truth.json"
    images = [{"id": 42, "file_name": "a/1.png"}, {"id": 9, "file_name": "1.png"}]
    path.write_text(json.dumps({"images": images}))
    ids = ImageIds(path)
    assert (ids["x/a/1.png"], ids["a/1.png"], ids["b/1.png"], ids["/1.png"]) == (42, 42, 9, 9)
    with pytest.raises(ValueError, match=r"truth.json' has no image 'x/2.png'"):
        ids["x/2.png"]
    results = CocoResults(CATEGORIES, ids)
    results.add("x/a/1.png", (80, 60), detections([[5, 5, 25, 20]], [0.25], [0]))
    results.write(tmp_path / "detections.json")
    content = json.loads((tmp_path / "detections.json").read_text())
    assert content["images"][0]["id"] == content["annotations"][0]["image_id"] == 42


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", "{}", '{"images": [{"id": 1}]}', '{"images": 1}']
)
def test_other_files_give_no_image_ids(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a.json' is not in COCO's format"):
        ImageIds(tmp_path / "a.json")
