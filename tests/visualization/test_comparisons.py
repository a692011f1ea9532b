import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from atss_d2.visualization import comparisons, save_comparisons, side_by_side
from atss_d2.visualization.comparisons import FALSE_ALARM, FOUND, MISSED, NEUTRAL

NAME = "atss_d2_test_comparisons"
CLASSES = ["disc", "square"]
IDS = {7: 0, 3: 1}  # the data set's numbers of the classes


def _annotation(box, category_id=0, iscrowd=0):
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": category_id,
        "iscrowd": iscrowd,
    }


# Class 0 and 1 found, class 0 missed, one crowd region.
ANNOTATIONS = [
    _annotation([50, 50, 150, 150]),
    _annotation([250, 50, 350, 150], category_id=1),
    _annotation([450, 50, 550, 150]),
    _annotation([50, 250, 250, 350], iscrowd=1),
]


def _result(image_id, box, category_id, score):
    x0, y0, x1, y1 = box
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "score": score,
    }


RESULTS = [
    _result(11, [50, 50, 150, 150], 7, 0.9),
    _result(11, [250, 50, 350, 150], 3, 0.8),
    _result(11, [450, 50, 550, 150], 3, 0.7),  # right place, wrong class
    _result(11, [100, 260, 150, 310], 7, 0.6),  # in the crowd
    _result(11, [600, 300, 700, 390], 7, 0.2),  # below the threshold
]


@pytest.fixture
def dataset(tmp_path):
    """Three gray images, 800 x 400, two of the same name; only the first has boxes."""
    dicts = []
    for image_id, name in [(11, "a/1.jpg"), (12, "b/1.jpg"), (13, "b/2.jpg")]:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((400, 800, 3), 60, dtype=np.uint8))
        dicts.append({"file_name": str(path), "image_id": image_id, "height": 400, "width": 800})
    dicts[0]["annotations"] = ANNOTATIONS
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).set(
        thing_classes=CLASSES, thing_dataset_id_to_contiguous_id=dict(IDS)
    )
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def _color_at(picture, x, y):
    """The strongest color within two pixels, RGB in [0, 1]."""
    patch = picture[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)[:, ::-1].astype(int)
    spread = patch.max(axis=1) - patch.min(axis=1)
    best = patch[spread.argmax()] if spread.max() > 40 else patch[patch.sum(axis=1).argmax()]
    return best / 255


def _check_panels(picture):
    """The picture made of ANNOTATIONS and RESULTS with a threshold of 0.5."""
    assert picture.shape[1] == 2 * 800 + 6
    bar, right = picture.shape[0] - 400, 806
    for x, y, color in [
        (100, 150, FOUND),
        (300, 150, FOUND),
        (500, 150, MISSED),
        (right + 100, 150, FOUND),
        (right + 300, 150, FOUND),
        (right + 500, 150, FALSE_ALARM),
        (right + 125, 310, NEUTRAL),
    ]:
        np.testing.assert_allclose(_color_at(picture, x, bar + y), color, atol=0.15)
    for x, y in [(right + 650, 390), (650, 390), (right + 150, 350)]:  # nothing is here
        np.testing.assert_allclose(_color_at(picture, x, bar + y), 60 / 255, atol=0.05)


def _instances():
    boxes = torch.tensor([x["bbox"] for x in RESULTS])
    return Instances(
        (400, 800),
        pred_boxes=Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)),
        pred_classes=torch.tensor([IDS[x["category_id"]] for x in RESULTS]),
        scores=torch.tensor([x["score"] for x in RESULTS]),
    )


@pytest.fixture
def captions(monkeypatch):
    """What is written above the panels, one text for each panel, appended at each drawing."""
    texts = []
    draw = comparisons._caption_bar

    def record(pair, *args):
        texts.extend("".join(text for text, _ in caption) for caption in pair)
        return draw(pair, *args)

    monkeypatch.setattr(comparisons, "_caption_bar", record)
    return texts


def test_side_by_side_marks_found_missed_and_false(captions):
    image = np.full((400, 800, 3), 60, dtype=np.uint8)
    picture = side_by_side(image, ANNOTATIONS, _instances(), class_names=CLASSES)
    _check_panels(picture)
    assert captions == [
        "ground truth: 3  2 found  1 missed  1 crowd",
        "detections, score >= 0.5: 4  2 right  1 false  1 in crowd",
    ]


def test_captions_name_the_titles_and_the_threshold(captions):
    image = np.full((400, 800, 3), 60, dtype=np.uint8)
    side_by_side(image, [], _instances(), score_thresh=0.15, titles=("labels", "epoch 3"))
    assert captions == [
        "labels: 0  0 found  0 missed",
        "epoch 3, score >= 0.15: 5  0 right  5 false",
    ]


def test_the_caption_is_drawn_in_the_colors_of_the_boxes():
    image = np.full((400, 800, 3), 60, dtype=np.uint8)
    picture = side_by_side(image, ANNOTATIONS, _instances())
    bar = picture[: picture.shape[0] - 400]
    for color, part in [(FOUND, bar[:, :800]), (MISSED, bar[:, :800]), (FALSE_ALARM, bar[:, 806:])]:
        distance = np.abs(part[:, :, ::-1] / 255 - color).max(axis=2)
        assert distance.min() < 0.05


@pytest.mark.parametrize(
    ("size", "panel"),
    [((40, 80), (400, 800)), ((500, 1000), (500, 1000)), ((3000, 1000), (1280, 427))],
)
def test_panels_are_neither_tiny_nor_huge(size, panel):
    image = np.zeros((*size, 3), dtype=np.uint8)
    picture = side_by_side(image, [], _instances()[:0])
    assert picture.shape[1] == 2 * panel[1] + 6
    assert 10 < picture.shape[0] - panel[0] < 40


def test_save_comparisons_reads_the_file_of_coco_evaluator(dataset, tmp_path, captions):
    results = tmp_path / "coco_instances_results.json"
    results.write_text(json.dumps(RESULTS))
    paths = save_comparisons(dataset, results, tmp_path / "out")
    assert paths == [tmp_path / "out" / name for name in ("a/1.png", "b/1.png", "2.png")]
    _check_panels(cv2.imread(str(paths[0])))
    assert captions[:2] == [
        "ground truth: 3  2 found  1 missed  1 crowd",
        "detections, score >= 0.5: 4  2 right  1 false  1 in crowd",
    ]
    assert (
        captions[2:]
        == [
            "ground truth: 0  0 found  0 missed",
            "detections, score >= 0.5: 0  0 right  0 false",
        ]
        * 2
    )


def test_save_comparisons_takes_a_list_and_stops_at_max_images(dataset, tmp_path, captions):
    paths = save_comparisons(
        dataset, RESULTS, tmp_path, score_thresh=0.1, max_images=1, progress=False
    )
    assert [path.name for path in paths] == ["1.png"]
    assert "score >= 0.1: 5 " in captions[1]
    assert save_comparisons(dataset, RESULTS, tmp_path, max_images=0) == []
    with pytest.raises(ValueError, match="max_images must be >= 0 or None, got -1"):
        save_comparisons(dataset, RESULTS, tmp_path, max_images=-1)


def test_save_comparisons_refuses_results_of_another_data_set(dataset, tmp_path):
    with pytest.raises(ValueError, match=f"not in '{NAME}', such as image_id 99"):
        save_comparisons(dataset, [_result(99, [0, 0, 9, 9], 7, 0.9)], tmp_path)
    with pytest.raises(ValueError, match=f"category_id 1 of the results is not in '{NAME}'"):
        save_comparisons(dataset, [_result(11, [0, 0, 9, 9], 1, 0.9)], tmp_path)


def test_without_a_mapping_category_ids_are_the_classes(dataset, tmp_path, captions):
    MetadataCatalog.remove(dataset)
    results = [{**x, "category_id": IDS[x["category_id"]]} for x in RESULTS]
    save_comparisons(dataset, results, tmp_path, max_images=1)
    assert captions[1] == "detections, score >= 0.5: 4  2 right  1 false  1 in crowd"
