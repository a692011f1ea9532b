"""What the documents show is run, on small data."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from atss_d2.config import load_config
from atss_d2.engine import apply_overrides, default_setup, do_train
from atss_d2.predictor import Predictor
from tests.detectron2_models import anchors_of, image, losses_of

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "train.init_checkpoint=''",
    "model.test_score_thresh=0.0",  # an untrained head has low scores
    "train.max_iter=2",
    "train.eval_period=2",
    "dataloader.train.mapper.augmentations.0.short_edge_length=64",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
]


def python_blocks(document: str) -> list[str]:
    text = (ROOT / "docs" / document).read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def write_coco(folder: Path, name: str) -> None:
    """Four pictures of 64 x 80 px with a bright square each, classes 10, 20 and 30."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(4):
        pixels = rng.integers(0, 80, (64, 80, 3), dtype=np.uint8)
        x, y, side = 5 + 5 * i, 8, 30
        pixels[y : y + side, x : x + side] = 255
        (folder / "images").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "images" / f"{name}_{i}.png"), pixels)
        images.append({"id": i, "file_name": f"{name}_{i}.png", "height": 64, "width": 80})
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 10 * (1 + i % 3),
                "bbox": [x, y, side, side],
                "area": side**2,
                "iscrowd": 0,
            }
        )
    categories = [{"id": 10 * k, "name": f"class {k}"} for k in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture
def my_data(tmp_path, monkeypatch):
    """The files that the document's config names, relative to the working directory."""
    for name in ("train", "val"):
        write_coco(tmp_path / "data", name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_train", "my_val"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def test_the_config_for_custom_data_trains_and_predicts(my_data):
    source, *_ = python_blocks("custom_dataset.md")
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
    (my_data / "my_config.py").write_text(source)
    cfg = load_config(my_data / "my_config.py")
    apply_overrides(cfg, SMALL)
    default_setup(cfg, "test")
    results = do_train(cfg)
    assert set(results["bbox"]) >= {"AP", "AP50", "AP-class 1", "AP-class 2", "AP-class 3"}

    output = my_data / "output" / "my_model"
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = [row["total_loss"] for row in rows if "total_loss" in row]
    assert losses
    assert np.isfinite(losses).all()
    predictor = Predictor(cfg, output / "model_best.pth")
    assert predictor.class_names == ["class 1", "class 2", "class 3"]
    assert predictor(my_data / "data" / "images" / "val_0.png").image_size == (64, 80)


def test_the_snippets_on_integration_run():
    """In the order of the document; what each of them leaves behind is what it says."""
    model_block, lazy, yaml, ignore, tensors, own_rule = python_blocks("integration.md")
    names = {}
    exec(model_block, names)
    assert type(names["model"]) is RetinaNet
    assert "label_anchors" not in vars(names["model"])

    exec(lazy, names)
    assert type(names["model"]) is FCOS
    assert names["model"].num_classes == 3
    assert names["model"].label_anchors.matcher.topk == 13

    exec(yaml, names)
    model = names["model"]
    assert isinstance(model, RetinaNet)
    assert (model.label_anchors.matcher.topk, model.label_anchors.matcher.num_anchors) == (9, 9)

    exec(ignore, names)
    assert names["mapper"].keep_ignored
    assert model.label_anchors.matcher.ignore_iof_thresh == 0.5

    exec(tensors, names)
    first, second = names["matched_idxs"]
    assert first.shape == (30 * 40,)
    assert set(first.tolist()) == {-1, 0, 1}
    assert (second == -1).all()

    exec(own_rule, names)
    boxes = [[40.0, 40, 100, 120], [60, 60, 110, 110], [70, 70, 70, 90]]
    crowd = [[0.0, 0, 128, 128]]
    images = [
        image(boxes + crowd, size=(128, 128), gt_ignore=[False, False, False, True]),
        image(size=(128, 128)),
    ]
    matcher = model.label_anchors.matcher
    assert (type(matcher).__name__, matcher.part) == ("CentralPartMatcher", 0.4)
    matched, empty = matcher(
        anchors_of(model, (128, 128)), [x["instances"].gt_boxes for x in images]
    )
    assert (set(matched.tolist()), set(empty.tolist())) == ({-1, 0, 1, 3}, {-1})
    flags = [torch.tensor([False, False, False, True]), torch.zeros(0, dtype=torch.bool)]
    matched, _ = matcher(
        anchors_of(model, (128, 128)), [x["instances"].gt_boxes for x in images], flags
    )
    assert set(matched.tolist()) == {-1, 0, 1}
    model.backbone.bottom_up.stem.conv1.weight.data *= 0.01  # MSRA weights would tame it
    assert losses_of(model, images)["loss_box_reg"] > 0
