"""Regions to ignore, from the data set to training; what rules and losses do: tests/modeling."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from atss_d2 import ATSSMatcher, get_config
from atss_d2.data import BoxDatasetMapper
from atss_d2.data.embedded import shapes
from atss_d2.engine import apply_overrides
from tests import toy
from tests.detector import build

NUM_CLASSES = len(shapes.SHAPES_CLASSES)
STRIDES = (8, 16)  # of the toy detector, whose anchors are 32 and 64 pixels wide


@pytest.fixture(scope="module", autouse=True)
def few_shapes(tmp_path_factory):
    """Four images of each data set; the last one has a crowd region."""
    with pytest.MonkeyPatch.context() as patch:
        for name in shapes.SHAPES_SPLITS:
            patch.setitem(shapes.SHAPES_SPLITS, name, 4)
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("shapes")))
        yield


def blank(tmp_path, objects=(), crowds=(), width=192, height=128):
    """An empty picture with boxes XYXY."""
    path = tmp_path / "blank.png"
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": iscrowd}
        for iscrowd, boxes in enumerate((objects, crowds))
        for box in boxes
    ]
    return {"file_name": str(path), "height": height, "width": width, "annotations": annotations}


def read(record, *augmentations, keep_ignored=True, min_visible=0.0):
    mapper = BoxDatasetMapper(
        is_train=True,
        augmentations=list(augmentations),
        image_format="BGR",
        keep_ignored=keep_ignored,
        min_visible=min_visible,
    )
    return mapper(record)


def detector(ioa_thresh=None, **options):
    matcher = ATSSMatcher(ignore_ioa_thresh=ioa_thresh, **options)
    return build(num_classes=NUM_CLASSES, matcher=matcher)


def grid(model, image):
    """L levels of anchors of an image."""
    height, width = image["image"].shape[-2:]
    sizes = [(-(-height // 16) * 16 // s, -(-width // 16) * 16 // s) for s in STRIDES]
    return model.anchor_generator([torch.zeros(1, 1, *size) for size in sizes])


def covered_share(anchor, region):
    x1, y1 = max(anchor[0], region[0]), max(anchor[1], region[1])
    x2, y2 = min(anchor[2], region[2]), min(anchor[3], region[3])
    area = (anchor[2] - anchor[0]) * (anchor[3] - anchor[1])
    return max(x2 - x1, 0) * max(y2 - y1, 0) / area


@pytest.mark.parametrize(
    "change", [T.CropTransform(64, 0, 128, 128), T.HFlipTransform(192), T.VFlipTransform(128)]
)
def test_regions_follow_the_image_and_slivers_become_some(tmp_path, change):
    # The crop leaves the right half of the crowd and an eighth of the object: x 64..72.
    record = blank(tmp_path, objects=[(8, 64, 72, 128)], crowds=[(32, 0, 96, 64)])
    image = read(record, change, min_visible=0.3)
    height, width = image["image"].shape[1:]
    is_crop = width == 128
    sliver, crowd = change.apply_box([(8, 64, 72, 128), (32, 0, 96, 64)]).clip(
        0, [width, height, width, height]
    )
    torch.testing.assert_close(
        image["instances"].gt_boxes.tensor, torch.tensor(np.stack([sliver, crowd])).float()
    )
    model = detector(0.2)
    _, labels, *_ = model.label_anchors(grid(model, image), [image["instances"]])
    is_covered = [
        max(covered_share(a, x) for x in ([sliver, crowd] if is_crop else [crowd])) > 0.2
        for a in Boxes.cat(grid(model, image)).tensor.tolist()
    ]
    expected = torch.where(torch.tensor(is_covered), -1, NUM_CLASSES)
    is_background = (labels[0] == -1) | (labels[0] == NUM_CLASSES)
    assert torch.equal(labels[0][is_background], expected[is_background])
    assert is_background.all() == is_crop
    assert any(is_covered)


def test_batches_of_all_kinds_train(tmp_path):
    model = detector(0.5).train()
    crowd = (0, 0, 192, 128)  # the whole image
    batches = [
        [read(blank(tmp_path, crowds=[crowd]))],
        [read(blank(tmp_path))],
        [read(blank(tmp_path, crowds=[crowd])), read(blank(tmp_path, [(20, 20, 70, 80)]))],
        [read(record) for record in DatasetCatalog.get("shapes_train")],
    ]
    for batch in batches:
        model.zero_grad()
        with EventStorage() as storage:
            losses = model(batch)
            sum(losses.values()).backward()
        for name, loss in losses.items():
            assert torch.isfinite(loss), name
        for name, parameter in model.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
        logged = {name: value for name, (value, _) in storage.latest().items()}
        objects = sum((~x["instances"].gt_ignore).sum().item() for x in batch)
        assert logged["atss/gt_without_positive"] <= objects / len(batch)
    with EventStorage():
        losses = model(batches[0])
    # No object, and no background that counts: at the border, anchors lie outside by half and more.
    assert losses["loss_box_reg"] == 0
    assert losses["loss_centerness"] == 0
    assert losses["loss_cls"] > 0
    with EventStorage():
        assert losses["loss_cls"] < 0.5 * detector().train()(batches[0])["loss_cls"]


SPLITS = {"train": "train", "test": "val"}
OVERRIDES = ["dataloader.train.mapper.keep_ignored=True", "model.matcher.ignore_ioa_thresh=0.5"]


def test_the_recipes_for_coco_take_the_overrides_of_the_document():
    text = (Path(__file__).resolve().parents[1] / "docs" / "custom_dataset.md").read_text()
    assert f"my_config.py \\\n    {' '.join(OVERRIDES)} " in text
    cfg = apply_overrides(get_config("coco/atss_R_50_FPN_1x"), OVERRIDES)
    assert instantiate(cfg.dataloader.train.mapper).keep_ignored
    assert instantiate(cfg.model.matcher).ignore_ioa_thresh == 0.5


def test_two_overrides_turn_it_on(tmp_path):
    options = {"train.max_iter": 2, "train.eval_period": 0, "dataloader.evaluator": None}
    # The image with the crowd is in each batch.
    options |= {"dataloader.train.total_batch_size": 4, "model.num_classes": NUM_CLASSES}
    options |= {f"dataloader.{x}.dataset.names": f"shapes_{y}" for x, y in SPLITS.items()}
    run = toy.Run(tmp_path, **options, **{"dataloader.train.aspect_ratio_grouping": False})
    apply_overrides(run.cfg, OVERRIDES)
    run.train()
    assert [run.metrics[i]["atss/num_ignored"] > 0 for i in range(2)] == [True, True]
    assert np.isfinite([run.metrics[i]["total_loss"] for i in range(2)]).all()
