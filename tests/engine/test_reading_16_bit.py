"""Gray images of 16 bits look the same to every route: yaml loaders, lazy configs, TTA."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from atss_d2 import DenseDetectorWithTTA
from atss_d2.config import load_config
from atss_d2.engine import Trainer
from tests import toy
from tests.spots import Spots

GREY = np.tile(np.arange(128, dtype=np.uint8), (96, 1))


@pytest.fixture
def files(tmp_path):
    """The same picture with 8 and with 16 bits."""
    for bits, pixels in ((8, GREY), (16, GREY.astype(np.uint16) * 257)):
        Image.fromarray(pixels).save(tmp_path / f"{bits}.png")
    return [tmp_path / "8.png", tmp_path / "16.png"]


@pytest.fixture
def dataset(files):
    name = "atss_d2_test_16_bit"
    box = {"bbox": [10, 10, 60, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    records = [
        {"file_name": str(x), "height": 96, "width": 128, "image_id": i, "annotations": [box]}
        for i, x in enumerate(files)
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["a"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_the_loaders_of_yaml(dataset, tmp_path):
    (tmp_path / "a.yaml").write_text(toy.yaml_config(tmp_path))
    cfg = load_config(tmp_path / "a.yaml")
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.INPUT.RANDOM_FLIP = "none"
    seen = [batch[0]["image"] for batch in Trainer.build_test_loader(cfg, dataset)]
    assert torch.equal(*seen)
    assert seen[0].float().std() > 20
    by_id = {}
    for batch in Trainer.build_train_loader(cfg):
        by_id.update({x["image_id"]: x["image"] for x in batch})
        if len(by_id) == 2:
            break
    assert torch.equal(by_id[0], by_id[1])
    # Detectron2's own mapper is what this is about.
    record = DatasetCatalog.get(dataset)[1]
    assert (DatasetMapper(cfg, is_train=False)(record)["image"][:, :, 5:] == 255).all()


def test_test_time_augmentation(files):
    model = Spots()
    tta = DenseDetectorWithTTA(model, min_sizes=[96], flip=False)
    for path in files:
        tta([{"file_name": str(path)}])
    seen = [image for batch in model.batches for image in batch]
    assert torch.equal(*seen)
    assert seen[0].float().std() > 20
