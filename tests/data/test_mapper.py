import copy

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atss_d2.data import BoxDatasetMapper
from atss_d2.data.embedded import shapes


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A drawn scene with a crowd region, as Detectron2's catalog gives it."""
    scene = shapes.draw_scene("shapes_train", 3)
    path = tmp_path_factory.mktemp("scene") / "a.png"
    Image.fromarray(scene.pixels[:, :, ::-1]).save(path)
    height, width = scene.pixels.shape[:2]
    return {
        "file_name": str(path),
        "height": height,
        "width": width,
        "image_id": 1,
        "annotations": [
            {
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": label,
                "iscrowd": int(is_crowd),
            }
            for (x1, y1, x2, y2), label, is_crowd in zip(
                scene.boxes.tolist(), scene.classes.tolist(), scene.is_crowd.tolist(), strict=True
            )
        ],
    }


def _mapper(augmentations, cls=BoxDatasetMapper, is_train=True, **kwargs):
    return cls(is_train, augmentations=augmentations, image_format="BGR", **kwargs)


def _blank(tmp_path, boxes, width=100, height=80, flags=()):
    """An empty picture with a box of each class; ``flags`` are more keys of the first boxes."""
    path = tmp_path / "blank.png"
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i}
        for i, box in enumerate(boxes)
    ]
    for annotation, more in zip(annotations, flags, strict=False):
        annotation.update(more)
    return {"file_name": str(path), "height": height, "width": width, "annotations": annotations}


def _assert_same_instances(a, b):
    assert a.image_size == b.image_size
    torch.testing.assert_close(a.gt_boxes.tensor, b.gt_boxes.tensor, rtol=0, atol=0)
    torch.testing.assert_close(a.gt_classes, b.gt_classes, rtol=0, atol=0)


_AUGMENTATIONS = [
    T.RandomCrop("absolute", (160, 200)),
    T.RandomFlip(horizontal=True),
    T.RandomFlip(horizontal=False, vertical=True),
    T.RandomRotation([0, 90, 180, 270], sample_style="choice"),
    T.ResizeScale(0.5, 2.0, 320, 320),
    T.RandomBrightness(0.8, 1.2),
    T.RandomContrast(0.8, 1.2),
    T.RandomSaturation(0.8, 1.2),
]


@pytest.mark.parametrize("seed", range(4))
def test_without_a_limit_it_is_detectron2s_mapper(record, seed):
    outputs = []
    for cls in (DatasetMapper, BoxDatasetMapper):
        np.random.seed(seed)  # noqa: NPY002  (Detectron2's augmentations use it)
        outputs.append(_mapper(_AUGMENTATIONS, cls)(record))
    expected, output = outputs
    assert output.keys() == expected.keys()
    torch.testing.assert_close(output["image"], expected["image"], rtol=0, atol=0)
    a, b = output["instances"], expected["instances"]
    _assert_same_instances(a, b)
    assert list(a.get_fields()) == list(b.get_fields())


@pytest.mark.parametrize("is_train", [True, False])
def test_segmentation_and_proposals_are_those_of_detectron2s_mapper(record, tmp_path, is_train):
    height, width = record["height"], record["width"]
    labels = np.random.default_rng(0).integers(0, 5, (height, width), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {
        **record,
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "proposal_boxes": np.array([[5.0, 5, 60, 50], [20, 8, 70, 66]]),
        "proposal_objectness_logits": np.array([0.5, 2.0]),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
    outputs = []
    for cls in (BoxDatasetMapper, DatasetMapper):
        augmentations = [T.CropTransform(10, 4, 80, 70), T.RandomFlip(prob=1.0)]
        mapper = _mapper(augmentations, cls, is_train, precomputed_proposal_topk=2)
        before = copy.deepcopy(record)
        outputs.append(mapper(record))
        np.testing.assert_equal(record, before)
    ours, theirs = outputs
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    assert torch.equal(ours["sem_seg"], theirs["sem_seg"])
    for field, expected in theirs["proposals"].get_fields().items():
        found = ours["proposals"].get(field)
        assert torch.equal(getattr(found, "tensor", found), getattr(expected, "tensor", expected))


def test_slivers_are_dropped_by_hand(tmp_path):
    # Crop x 20..80, y 10..60. Visible: all of the first; 10 of 20 columns of the second; 10 of 20
    # columns and 10 of 20 rows of the third; nothing of the fourth.
    boxes = [(30, 20, 50, 40), (10, 20, 30, 40), (70, 50, 90, 70), (85, 10, 95, 20)]
    record = _blank(tmp_path, boxes)
    expected = {0.0: [0, 1, 2], 0.2: [0, 1, 2], 0.25: [0, 1, 2], 0.26: [0, 1], 0.5: [0, 1]}
    expected |= {0.51: [0], 1.0: [0]}
    for min_visible, kept in expected.items():
        mapper = _mapper([T.CropTransform(20, 10, 60, 50)], min_visible=min_visible)
        assert mapper(record)["instances"].gt_classes.tolist() == kept
    assert _mapper([], is_train=False)(record).keys() == {"file_name", "height", "width", "image"}
    output = _mapper([T.CropTransform(20, 10, 60, 50)], min_visible=0.2)(record)
    torch.testing.assert_close(
        output["instances"].gt_boxes.tensor,
        torch.tensor([[10.0, 10, 30, 30], [0, 10, 10, 30], [50, 40, 60, 50]]),
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31 - 1), min_visible=st.floats(0.05, 1.0))
def test_the_fraction_counts_pixels(tmp_path_factory, seed, min_visible):
    rng = np.random.default_rng(seed)
    x0, y0 = rng.integers(0, 80), rng.integers(0, 60)
    x1, y1 = x0 + rng.integers(1, 100 - x0 + 1), y0 + rng.integers(1, 80 - y0 + 1)
    record = _blank(tmp_path_factory.mktemp("a"), [(x0, y0, x1, y1)])
    cx, cy = int(rng.integers(0, 50)), int(rng.integers(0, 40))
    window = (cx, cy, int(rng.integers(1, 51)), int(rng.integers(1, 41)))
    inside = np.zeros((80, 100), bool)
    inside[y0:y1, x0:x1] = True
    seen = inside[cy : cy + window[3], cx : cx + window[2]].sum()
    # Flips, rotations and resizing change no fraction.
    augmentations = [T.CropTransform(*window), *_AUGMENTATIONS[1:5]]
    np.random.seed(seed % 1000)  # noqa: NPY002
    output = _mapper(augmentations, min_visible=min_visible)(record)
    fraction = seen / inside.sum()
    if abs(fraction - min_visible) > 1e-9:
        assert len(output["instances"]) == (fraction > min_visible)


@pytest.mark.parametrize(("seed", "iscrowd"), [(i, i % 2) for i in range(6)])
def test_augmentations_move_boxes_with_pixels(tmp_path, seed, iscrowd):
    # Without resizing, the box must be exactly that of the white pixels.
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[120:150, 170:215] = 255
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    annotation = {"bbox": [170, 120, 45, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    annotation["iscrowd"] = iscrowd
    record = {"file_name": str(path), "height": 300, "width": 400, "annotations": [annotation]}
    np.random.seed(seed)  # noqa: NPY002
    augmentations = [T.RandomCrop("absolute", (260, 320)), *_AUGMENTATIONS[1:4]]
    output = _mapper(augmentations, keep_ignored=True)(record)
    assert output["instances"].gt_ignore.tolist() == [bool(iscrowd)]
    rows, columns = np.nonzero(output["image"][0].numpy())
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    torch.testing.assert_close(
        output["instances"].gt_boxes.tensor, torch.tensor([expected], dtype=torch.float32)
    )


def test_it_is_built_from_a_yaml_config(record):
    mapper = BoxDatasetMapper(get_cfg(), is_train=True, min_visible=0.3, keep_ignored=True)
    assert mapper.min_visible == 0.3
    assert mapper.image_format == "BGR"
    assert mapper(record)["instances"].gt_ignore.sum() == 1


@pytest.mark.parametrize("min_visible", [-0.1, 1.5, float("nan")])
def test_an_impossible_fraction_is_named(min_visible):
    with pytest.raises(ValueError, match=r"min_visible must be in \[0, 1\], got"):
        _mapper([], min_visible=min_visible)


# Ignore regions

_REGIONS = [{"iscrowd": 1}, {"iscrowd": 0}, {"ignore": True}, {"ignore": 0}, {"ignore": 1}]
_ROW = [(x, 10, x + 15, 30) for x in (0, 20, 40, 60, 80)]


def test_regions_are_kept_behind_the_objects(tmp_path):
    record = _blank(tmp_path, _ROW, flags=_REGIONS)
    instances = _mapper([], keep_ignored=True)(record)["instances"]
    assert instances.gt_ignore.dtype == torch.bool
    assert instances.gt_ignore.tolist() == [False, False, True, True, True]
    assert instances.gt_classes.tolist() == [1, 3, 0, 2, 4]
    torch.testing.assert_close(
        instances.gt_boxes.tensor, torch.tensor([_ROW[i] for i in (1, 3, 0, 2, 4)]).float()
    )


def test_regions_are_never_objects(tmp_path):
    # Detectron2 does not know the key "ignore" and would train on classes 2 and 4.
    instances = _mapper([])(_blank(tmp_path, _ROW, flags=_REGIONS))["instances"]
    assert instances.gt_classes.tolist() == [1, 3]
    assert not instances.has("gt_ignore")


@pytest.mark.parametrize(("seed", "min_visible"), [(0, 0.0), (1, 0.5), (2, 0.5)])
def test_keeping_regions_changes_no_object(record, seed, min_visible):
    outputs = []
    for keep_ignored in (False, True):
        np.random.seed(seed)  # noqa: NPY002
        mapper = _mapper(_AUGMENTATIONS, min_visible=min_visible, keep_ignored=keep_ignored)
        outputs.append(mapper(record))
    torch.testing.assert_close(outputs[1]["image"], outputs[0]["image"], rtol=0, atol=0)
    assert outputs[1].keys() == outputs[0].keys()
    kept = outputs[1]["instances"]
    _assert_same_instances(kept[~kept.gt_ignore], outputs[0]["instances"])
    assert kept.gt_boxes.nonempty().all()


def test_slivers_become_regions(tmp_path):
    # The crop of test_slivers_are_dropped_by_hand. Nothing is left of the fourth box; the last is
    # a region anyway, however little of it is left: 2 of 30 columns.
    boxes = [(30, 20, 50, 40), (10, 20, 30, 40), (70, 50, 90, 70), (85, 10, 95, 20)]
    boxes.append((78, 20, 108, 40))
    record = _blank(tmp_path, boxes, flags=[{}] * 4 + [{"iscrowd": 1}])
    for min_visible, num_objects in [(0.0, 3), (0.3, 2), (0.6, 1)]:
        mapper = _mapper(
            [T.CropTransform(20, 10, 60, 50)], min_visible=min_visible, keep_ignored=True
        )
        instances = mapper(record)["instances"]
        assert instances.gt_classes.tolist() == [0, 1, 2, 4]
        assert instances.gt_ignore.tolist() == [i >= num_objects for i in range(4)]
        torch.testing.assert_close(  # clipped to the crop
            instances.gt_boxes.tensor[1:],
            torch.tensor([[0.0, 10, 10, 30], [50, 40, 60, 50], [58, 10, 60, 30]]),
        )


def test_masks_of_crowds_are_left_aside(tmp_path):
    # COCO: polygons of objects, run lengths of the whole picture for crowds.
    mask = np.zeros((80, 100), np.uint8, order="F")
    mask[10:30, 20:35] = 1
    flags = [
        {"iscrowd": 0, "segmentation": [[0, 10, 15, 10, 15, 30]]},
        {"iscrowd": 1, "segmentation": pycocotools.mask.encode(mask)},
    ]
    record = _blank(tmp_path, _ROW[:2], flags=flags)
    output = _mapper([T.CropTransform(0, 0, 50, 40), T.RandomFlip(1.0)], keep_ignored=True)(record)
    instances = output["instances"]
    assert list(instances.get_fields()) == ["gt_boxes", "gt_classes", "gt_ignore"]
    torch.testing.assert_close(
        instances.gt_boxes.tensor, torch.tensor([[35.0, 10, 50, 30], [15, 10, 30, 30]])
    )


@pytest.mark.parametrize("option", ["use_instance_mask", "use_keypoint"])
def test_regions_are_boxes_only(option):
    with pytest.raises(ValueError, match=rf"keep_ignored=True keeps boxes only.*{option}=True"):
        _mapper([], keep_ignored=True, **{option: True})
