"""Masks of the generated scenes: beside the boxes, for the same images."""

import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from atss_d2.data.embedded import shape_masks, shapes


@pytest.fixture
def few_scenes(monkeypatch, tmp_path):
    for name in shapes.SHAPES_SPLITS:
        monkeypatch.setitem(shapes.SHAPES_SPLITS, name, 5)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def decoded(annotation):
    segmentation = annotation["segmentation"]
    return mask_util.decode(segmentation).astype(bool)


@pytest.mark.parametrize(("name", "source"), shape_masks.MASK_SETS.items())
def test_masks_fill_the_boxes_of_the_same_images(few_scenes, name, source):
    with_masks, without = DatasetCatalog.get(name), DatasetCatalog.get(source)
    for index, (ours, theirs) in enumerate(zip(with_masks, without, strict=True)):
        assert ours["file_name"] == theirs["file_name"]
        drawn = shapes.draw_masks(source, index)
        for a, b, mask in zip(ours["annotations"], theirs["annotations"], drawn, strict=True):
            assert a["bbox"] == b["bbox"] == mask_util.toBbox(a["segmentation"]).tolist()
            np.testing.assert_array_equal(decoded(a), mask)
        # Objects hide each other: no pixel belongs to two.
        assert sum(decoded(a).astype(int) for a in ours["annotations"]).max() <= 1
    assert MetadataCatalog.get(name).thing_classes == ["shape"]


def test_files_of_older_boxes_are_written_again(few_scenes):
    name = "shapes_wide_masks_val"
    DatasetCatalog.get(name)
    path = few_scenes / shape_masks.annotation_file("shapes_wide_val")
    first = path.stat().st_mtime_ns
    DatasetCatalog.get(name)
    assert path.stat().st_mtime_ns == first
    boxes = few_scenes / shapes.annotation_file("shapes_wide_val")
    os.utime(boxes, ns=(first + 1, first + 1))
    DatasetCatalog.get(name)
    assert path.stat().st_mtime_ns > first


def test_detectron2_trains_and_evaluates_on_them(few_scenes):
    name = "shapes_wide_masks_val"
    dicts = DatasetCatalog.get(name)
    mapper = DatasetMapper(
        True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    evaluator = COCOEvaluator(name, output_dir=str(few_scenes / "output"), use_fast_impl=False)
    evaluator.reset()
    for x in dicts:
        truth = mapper(x)["instances"]
        boxes = truth.gt_masks.get_bounding_boxes().tensor
        assert boxes.tolist() == truth.gt_boxes.tensor.tolist()
        found = Instances((x["height"], x["width"]), pred_boxes=Boxes(boxes))
        found.pred_masks = truth.gt_masks.tensor
        found.pred_classes, found.scores = truth.gt_classes, truth.gt_classes + 0.9
        evaluator.process([x], [{"instances": found}])
    results = evaluator.evaluate()
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)
