"""Regions to ignore, from the data set to the gradient."""

import logging
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
from atss_d2.commands import train as train_net
from atss_d2.data import BoxDatasetMapper
from atss_d2.data.embedded import shapes
from atss_d2.engine import apply_overrides
from atss_d2.modeling.nouns import Predictions
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


def crowded():
    """The image with a crowd region."""
    return DatasetCatalog.get("shapes_train")[3]


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


def label(model, *images):
    """Labels (N, R) and matched boxes (N, R, 4) of images of one size."""
    return targets_of(model, *images)[1:3]


def targets_of(model, *images):
    return model.label_anchors(grid(model, images[0]), [x["instances"] for x in images])


def covered_share(anchor, region):
    x1, y1 = max(anchor[0], region[0]), max(anchor[1], region[1])
    x2, y2 = min(anchor[2], region[2]), min(anchor[3], region[3])
    area = (anchor[2] - anchor[0]) * (anchor[3] - anchor[1])
    return max(x2 - x1, 0) * max(y2 - y1, 0) / area


def by_levels(model, image, values):
    """(R,) as maps (Hi, Wi)."""
    levels = values.split([len(a) for a in grid(model, image)])
    width = image["image"].shape[-1]
    return [x.view(-1, width // s) for x, s in zip(levels, STRIDES, strict=True)]


# ------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("ioa_thresh", [0.0, 0.3, 0.5, 0.9])
def test_background_in_a_crowd_is_left_out(ioa_thresh):
    record = crowded()
    plain, plain_boxes = label(detector(), read(record, keep_ignored=False))
    model = detector(ioa_thresh)
    image = read(record)
    labels, boxes = label(model, image)
    (region,) = image["instances"].gt_boxes.tensor[image["instances"].gt_ignore].tolist()
    expected = plain[0].tolist()
    for r, anchor in enumerate(Boxes.cat(grid(model, image)).tensor.tolist()):
        if expected[r] == NUM_CLASSES and covered_share(anchor, region) > ioa_thresh:
            expected[r] = -1
    assert labels[0].tolist() == expected
    torch.testing.assert_close(boxes, plain_boxes, rtol=0, atol=0)
    assert 0 < (labels == -1).sum() < 0.5 * labels.numel()
    assert ((plain >= 0) & (plain < NUM_CLASSES)).any()


def test_objects_in_a_crowd_keep_their_anchors(tmp_path):
    crowd, inner = (32, 16, 160, 112), (72, 40, 120, 88)
    plain, _ = label(detector(), read(blank(tmp_path, [inner])))
    labels, boxes = label(detector(0.5), read(blank(tmp_path, [inner], [crowd])))
    is_positive = labels == 0
    assert is_positive.sum() >= 3
    assert torch.equal(is_positive, plain == 0)
    expected = torch.tensor(inner).float().expand(int(is_positive.sum()), 4)
    torch.testing.assert_close(boxes[is_positive], expected)
    # All other anchors of 32 px with their centre in the crowd, 16 x 12, are left out; of those in
    # its corners, (20 / 32)^2 = 0.39 lies inside.
    model = detector(0.5)
    fine = by_levels(model, read(blank(tmp_path)), labels[0])[0][2:14, 4:20]
    assert (fine[::11, ::15] == NUM_CLASSES).all()
    assert (fine == -1).sum() == 16 * 12 - 4 - (fine == 0).sum()


@pytest.mark.parametrize("options", [{}, {"center_epsilon": None}, {"min_positives": 2}])
def test_a_crowd_alone_has_no_positives(tmp_path, options):
    image = read(blank(tmp_path, crowds=[(32, 16, 160, 112), (0, 0, 40, 40)]))
    for ioa_thresh in (None, 0.5):
        labels, _ = label(detector(ioa_thresh, **options), image)
        assert set(labels.unique().tolist()) == {NUM_CLASSES} | ({-1} if ioa_thresh else set())


@pytest.mark.parametrize("horizontal", [True, False])
def test_flips_move_what_is_left_out(tmp_path, horizontal):
    record = blank(tmp_path, crowds=[(24, 8, 93, 71)])
    model = detector(0.5)
    image = read(record)
    flipped = read(record, T.RandomFlip(1.0, horizontal=horizontal, vertical=not horizontal))
    before = by_levels(model, image, label(model, image)[0][0])
    after = by_levels(model, flipped, label(model, flipped)[0][0])
    for a, b in zip(before, after, strict=True):
        assert torch.equal(b, a.flip(1 if horizontal else 0))
        assert not torch.equal(b, a)
        assert (b == -1).any()


def test_crops_cut_regions_and_make_some_of_slivers(tmp_path):
    # Cut out x 64..192. Left are the right half of the crowd and an eighth of the object.
    record = blank(tmp_path, objects=[(8, 64, 72, 128)], crowds=[(32, 0, 96, 64)])
    crop = T.CropTransform(64, 0, 128, 128)
    image = read(record, crop, min_visible=0.3)
    assert image["image"].shape == (3, 128, 128)
    sliver, crowd = [0, 64, 8, 128], [0, 0, 32, 64]
    torch.testing.assert_close(
        image["instances"].gt_boxes.tensor, torch.tensor([sliver, crowd]).float()
    )
    model = detector(0.2)
    expected = [
        -1 if max(covered_share(a, sliver), covered_share(a, crowd)) > 0.2 else NUM_CLASSES
        for a in Boxes.cat(grid(model, image)).tensor.tolist()
    ]
    labels, _ = label(model, image)
    assert labels[0].tolist() == expected
    fine, _ = by_levels(model, image, labels[0])
    # Anchors of 32 px in column 0 lie at -12..20, so 8 / 32 of them are in the sliver.
    assert (fine[10:14, 0] == -1).all()
    assert (fine[10:, 2:] == NUM_CLASSES).all()


# ------------------------------------------------------------------------------------ losses


def predictions(model, image, seed=0):
    """Random outputs of the head for one image, and a generator for more."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(a) for a in grid(model, image)]
    return [[torch.randn(1, n, c, generator=generator) for n in sizes] for c in (NUM_CLASSES, 4, 1)]


def losses_of(model, image, outputs):
    logits, deltas, centerness = outputs
    predictions = Predictions(logits, deltas, [c[..., 0] for c in centerness])
    return model.losses(predictions, targets_of(model, image))


def test_anchors_left_out_have_no_classification_loss():
    record = crowded()
    plain, model = detector(), detector(0.5)
    image, without = read(record), read(record, keep_ignored=False)
    gradients = []
    for m, x in ((plain, without), (model, image)):
        outputs = predictions(m, x)
        for logits in outputs[0]:
            logits.requires_grad_()
        losses_of(m, x, outputs)["loss_cls"].backward()
        gradients.append(torch.cat([logits.grad[0] for logits in outputs[0]]))
    is_ignored = label(model, image)[0][0] == -1
    assert (gradients[1][is_ignored] == 0).all()
    assert (gradients[0][is_ignored] != 0).all()
    # All others are trained as without the region: it has no positives that would be counted.
    torch.testing.assert_close(gradients[1][~is_ignored], gradients[0][~is_ignored], rtol=0, atol=0)
    assert (gradients[1][~is_ignored] != 0).all()

    outputs = predictions(model, image)
    before = losses_of(model, image, outputs)
    sizes = [len(a) for a in grid(model, image)]
    for logits, mask in zip(outputs[0], is_ignored.split(sizes), strict=True):
        logits[0, mask] = 50.0  # sure of all classes
    after = losses_of(model, image, outputs)
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert losses_of(plain, without, outputs)["loss_cls"] > 2 * before["loss_cls"]


def test_off_by_default():
    record = crowded()
    outputs = predictions(detector(), read(record))
    expected = losses_of(detector(), read(record, keep_ignored=False), outputs)
    for ioa_thresh, keep_ignored in ((None, True), (0.5, False)):
        image = read(record, keep_ignored=keep_ignored)
        losses = losses_of(detector(ioa_thresh), image, outputs)
        assert losses.keys() == expected.keys()
        for name in losses:
            torch.testing.assert_close(losses[name], expected[name], rtol=0, atol=0)
    losses = losses_of(detector(0.5), read(record), outputs)
    assert losses["loss_cls"] < expected["loss_cls"]
    for name in ("loss_box_reg", "loss_centerness"):
        torch.testing.assert_close(losses[name], expected[name], rtol=0, atol=0)


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


# -------------------------------------------------------------------------------- the command


OVERRIDES = ["dataloader.train.mapper.keep_ignored=True", "model.matcher.ignore_ioa_thresh=0.5"]


def test_the_recipes_for_coco_take_the_overrides_of_the_document():
    text = (Path(__file__).resolve().parents[1] / "docs" / "custom_dataset.md").read_text()
    assert f"my_config.py \\\n    {' '.join(OVERRIDES)}\n" in text
    cfg = apply_overrides(get_config("coco/atss_R_50_FPN_1x"), OVERRIDES)
    assert instantiate(cfg.dataloader.train.mapper).keep_ignored
    assert instantiate(cfg.model.matcher).ignore_ioa_thresh == 0.5


def test_two_overrides_turn_it_on(tmp_path):
    small = "{_target_:detectron2.data.transforms.Resize,shape:[128,160]}"
    overrides = [
        *OVERRIDES,
        f"train.output_dir={tmp_path}",
        # Small images and anchors, random weights, and the image with the crowd in each batch.
        *(f"dataloader.{split}.mapper.augmentations=[{small}]" for split in ("train", "test")),
        "model.anchor_generator.sizes=[[16],[32],[64],[128]]",
        "train.init_checkpoint=",
        "model.backbone.bottom_up.norm=BN",
        "model.backbone.bottom_up.freeze_at=0",
        "train.max_iter=2",
        "train.log_period=1",
        "dataloader.train.aspect_ratio_grouping=False",
    ]
    config_file = "demo/atss_mobilenetv2_shapes"
    args = train_net.get_parser().parse_args(["--config-file", config_file, *overrides])
    try:
        results = train_net.run(args)
    finally:  # what main() does to the logger would hide messages from later tests
        logging.getLogger("atss_d2").handlers.clear()
        logging.getLogger("atss_d2").propagate = True
    assert "AP" in results["bbox"]
    metrics = toy.read_metrics(tmp_path)
    assert [metrics[i]["atss/num_ignored"] > 0 for i in range(2)] == [True, True]
    assert np.isfinite([metrics[i]["total_loss"] for i in range(2)]).all()
