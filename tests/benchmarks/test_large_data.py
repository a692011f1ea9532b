"""``python -m benchmarks.large_data``: its commands on tiny sizes."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from benchmarks import large_data


@pytest.fixture(autouse=True)
def forgotten():
    yield
    if large_data.NAME in DatasetCatalog:
        DatasetCatalog.remove(large_data.NAME)
        MetadataCatalog.remove(large_data.NAME)


def test_written_annotations_are_loaded(tmp_path):
    path = tmp_path / "a.json"
    large_data.main(["write", str(path), "--images", "9", "--boxes", "30", "--polygons"])
    content = json.loads(path.read_text())
    assert [len(content[x]) for x in ("images", "annotations", "categories")] == [9, 30, 80]
    large_data.register_coco(large_data.NAME, path, "images")
    dicts = large_data.load_for_boxes(large_data.NAME)
    assert sum(len(x["annotations"]) for x in dicts) == 30


def test_evaluators_agree(capsys):
    large_data.main(["evaluation", "--images", "4", "--detections", "40"])
    printed = capsys.readouterr().out
    assert "4 images, 40 detections" in printed
    assert "Largest difference of 86 metrics: 0\n" in printed


def test_merging_is_measured(capsys):
    large_data.main(["merge", "--detections", "90", "--classes", "3"])
    assert "90 detections of 3 classes" in capsys.readouterr().out


def test_memory_of_this_process():
    memory = large_data.memory()
    assert 0 < memory["uss"] <= memory["pss"] < 100
