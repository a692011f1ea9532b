"""docs/prediction.md: its flags are those of the commands, its snippets run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import atss_d2
from atss_d2.commands import predict, predict_exported
from atss_d2.engine import build_model
from atss_d2.plain.coco import CocoResults, ImageIds
from atss_d2.plain.detections import Detections

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "prediction.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_flags_are_those_of_the_commands():
    documented = set(re.findall(r"`(--[a-z-]+)", TEXT))
    known = set(re.findall(r"(--[a-z-]+)", predict.get_parser().format_help()))
    assert documented <= known
    assert known - documented == {"--help", "--config-file", "--weights"}
    # Every flag but those that are marked is one of predict_exported as well.
    exported = set(re.findall(r"(--[a-z-]+)", predict_exported.get_parser().format_help()))
    common = TEXT.partition("## Many images")[0]
    rows = [row for row in common.splitlines() if row.startswith("| `--")]
    for row in rows:
        flags, text = row.split(" | ", 1)
        if "demo.py` only" not in text and "--input" not in flags:
            assert set(re.findall(r"(--[a-z-]+)", flags)) <= exported


def test_the_evaluation_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    truth = {
        "images": [{"id": 30, "file_name": "a.jpg", "width": 80, "height": 60}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"id": 5, "image_id": 30, "category_id": 7, "bbox": [5, 5, 40, 40]}
            | {"area": 1600, "iscrowd": 0}
        ],
    }
    Path("val.json").write_text(json.dumps(truth))
    results = CocoResults(truth["categories"], ImageIds("val.json"))
    boxes = np.array([[5, 5, 45, 45]], np.float32)
    results.add("x/a.jpg", (80, 60), Detections(boxes, np.array([0.9]), np.array([0])))
    results.write("found/detections.json")
    names = {}
    exec(BLOCKS[0], names)
    assert names["evaluation"].stats[0] == pytest.approx(1.0)


def test_the_snippet_on_tiles_runs(monkeypatch, tmp_path):
    weights = tmp_path / "output" / "demo" / "model_final.pth"
    weights.parent.mkdir(parents=True)
    cfg = atss_d2.get_config("demo/atss_mobilenetv2_trees")
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    pixels = np.random.default_rng(0).integers(0, 255, (300, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "aerial.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(BLOCKS[1], names)
    assert names["instances"].image_size == (300, 700)
    assert names["predictor"].batch_size == 4
