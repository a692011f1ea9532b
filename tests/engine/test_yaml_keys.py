"""Keys of Detectron2 that a user of yaml configs expects to work."""

import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from atss_d2 import DenseDetectorWithTTA
from atss_d2.checkpoint import apply_convention
from atss_d2.config import ConfigError, get_cfg, load_config
from atss_d2.data import DataError
from atss_d2.engine import Trainer
from atss_d2.engine.amp import GradScaler
from atss_d2.engine.coco_evaluation import FastCOCOEvaluator
from atss_d2.engine.evaluation import build_evaluator
from atss_d2.modeling import build as module
from tests import detector, toy

pytestmark = pytest.mark.usefixtures("toy_data")


def toy_cfg(folder: Path, *overrides):
    (folder / "toy.yaml").write_text(toy.yaml_config(folder / "output"))
    cfg = load_config(folder / "toy.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
    return cfg


# TEST.DETECTIONS_PER_IMAGE

OF_TEST, OF_MODEL = "TEST.DETECTIONS_PER_IMAGE", "MODEL.ATSS.MAX_DETECTIONS_PER_IMAGE"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 100),
        ([OF_TEST, 7], 7),
        ([OF_MODEL, 7], 7),
        ([OF_TEST, 7, OF_MODEL, 7], 7),
        ([OF_TEST, 300, OF_MODEL, 100], 300),  # 100 is the default
        ([OF_TEST, 100, OF_MODEL, 300], 300),
    ],
)
def test_detections_per_image(tmp_path, overrides, expected):
    cfg = toy_cfg(tmp_path, *overrides)
    model = build_model(cfg)
    assert model.max_detections_per_image == expected
    assert DenseDetectorWithTTA(cfg, model).max_detections_per_image == expected


def test_two_numbers_of_detections_are_an_error(tmp_path):
    cfg = toy_cfg(tmp_path, OF_TEST, 7, OF_MODEL, 8)
    with pytest.raises(ValueError, match=f"^{OF_TEST} 7 and {OF_MODEL} 8 are diff.*: set only one"):
        build_model(cfg)


def test_a_convention_sets_both(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list([OF_TEST, 7])
    apply_convention(cfg, "mmdet")
    assert module.detections_per_image(cfg) == 100


# Numbers of classes of other models


@pytest.mark.parametrize("name", ["RETINANET", "ROI_HEADS", "FCOS"])
def test_the_number_of_classes_of_another_model(tmp_path, caplog, name):
    key = f"MODEL.{name}.NUM_CLASSES"
    cfg = get_cfg()
    if name == "FCOS":
        cfg.MODEL.FCOS = type(cfg)({"NUM_CLASSES": 80})
    module.check_num_classes(cfg)
    cfg.merge_from_list([key, 3])
    with pytest.raises(ValueError, match=f"^{key} is 3, .*: set MODEL.ATSS.NUM_CLASSES 3$"):
        module.check_num_classes(cfg)
    cfg.MODEL.ATSS.NUM_CLASSES = 3
    module.check_num_classes(cfg)
    assert caplog.messages == []
    cfg.MODEL.ATSS.NUM_CLASSES = 4
    module.check_num_classes(cfg)
    (message,) = caplog.messages
    assert message == (
        f"{key} is 3, which ATSS does not read; its number of classes, MODEL.ATSS.NUM_CLASSES, is 4"
    )


def test_a_model_of_the_wrong_number_of_classes_is_not_built(tmp_path):
    cfg = toy_cfg(tmp_path, "MODEL.ATSS.NUM_CLASSES", 80, "MODEL.RETINANET.NUM_CLASSES", 2)
    with pytest.raises(ValueError, match="set MODEL.ATSS.NUM_CLASSES 2"):
        build_model(cfg)


# Evaluators

VOC_XML = """<annotation><size><width>{size}</width><height>{size}</height></size>
<object><name>cat</name><truncated>0</truncated><pose>a</pose>
<difficult>0</difficult><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>50</xmax><ymax>60</ymax>
</bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path) -> str:
    """A data set of Pascal VOC with one image and one cat."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    for name in "ab":
        (tmp_path / f"Annotations/{name}.xml").write_text(VOC_XML.format(size=96))
        cv2.imwrite(str(tmp_path / f"JPEGImages/{name}.jpg"), np.zeros((96, 96, 3), np.uint8))
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\nb\n")  # of one Detectron2 makes no list
    register_pascal_voc("voc_of_tests", str(tmp_path), "val", 2007, ("cat", "dog"))
    MetadataCatalog.get("voc_of_tests").evaluator_type = "pascal_voc"
    yield "voc_of_tests"
    DatasetCatalog.remove("voc_of_tests")
    MetadataCatalog.remove("voc_of_tests")


def test_training_and_evaluating_pascal_voc(voc, tmp_path):
    sets = ["DATASETS.TRAIN", (voc,), "DATASETS.TEST", (voc,), "SOLVER.IMS_PER_BATCH", 1]
    trainer = Trainer(toy_cfg(tmp_path, *sets, "SOLVER.MAX_ITER", 1, "TEST.EVAL_PERIOD", 1))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert set(trainer._last_eval_results["bbox"]) == {"AP", "AP50", "AP75"}
    assert type(build_evaluator(voc, "unused")) is PascalVOCDetectionEvaluator


@pytest.mark.parametrize("kind", ["coco", "coco_panoptic_seg", None])
def test_coco(tmp_path, kind):
    name = f"of_kind_{kind}"
    metadata = MetadataCatalog.get(name)
    metadata.json_file = MetadataCatalog.get("toy_val").json_file
    if kind is not None:
        metadata.evaluator_type = kind
    try:
        evaluator = build_evaluator(name, str(tmp_path))
    finally:
        MetadataCatalog.remove(name)
    assert type(evaluator) is FastCOCOEvaluator
    assert evaluator._output_dir == str(tmp_path)


@pytest.fixture
def lvis_metadata(tmp_path):
    metadata = MetadataCatalog.get("lvis_of_tests")
    metadata.set(json_file=str(tmp_path / "lvis.json"), evaluator_type="lvis")
    yield metadata
    MetadataCatalog.remove("lvis_of_tests")


def test_lvis_without_its_library(lvis_metadata, monkeypatch):
    monkeypatch.setitem(sys.modules, "lvis", None)
    with pytest.raises(DataError, match="'lvis_of_tests' is evaluated by .*: pip install lvis"):
        build_evaluator("lvis_of_tests")


def test_types_without_boxes():
    MetadataCatalog.get("city").evaluator_type = "cityscapes_instance"
    try:
        with pytest.raises(DataError, match="'city' is of type 'cityscapes_instance'"):
            build_evaluator("city")
    finally:
        MetadataCatalog.remove("city")


# VIS_PERIOD


def drawn(model, iterations) -> dict[int, np.ndarray]:
    """Iteration -> the picture (3, H, W) that the model drew."""
    inputs = [detector.image(detector.BOXES[:2], seed=3), detector.image([], seed=4)]
    pictures = {}
    for iteration in iterations:
        with EventStorage(iteration) as storage:
            losses = model(inputs)
            for name, picture, _ in storage._vis_data:
                assert "GT bounding boxes" in name
                pictures[iteration] = picture
    return pictures, losses


def test_training_images_are_drawn_every_so_often():
    options = {"pixel_std": [57.375, 57.12, 58.395]}
    model = detector.build(vis_period=3, **options).train()
    pictures, _ = drawn(model, range(7))
    assert list(pictures) == [0, 3, 6]
    height, width = 64, 96
    assert pictures[0].shape == (3, 2 * height, width)
    # The image itself, in RGB, in most of the upper half: the boxes are thin lines.
    image = detector.image(seed=3)["image"].numpy()[::-1]
    # Matplotlib up to 3.10 draws parts of it a pixel to the right or higher.
    drawings = [
        np.roll(pictures[0][:, :height], shift, axis=(1, 2))
        for shift in ((0, 0), (0, -1), (1, 0), (1, -1))
    ]
    is_equal = np.any([(x == image).all(axis=0) for x in drawings], axis=0)
    assert 0.5 < is_equal.mean() < 1
    none, expected = drawn(detector.build(**options).train(), range(1))
    assert none == {}
    torch.testing.assert_close(drawn(detector.build(vis_period=1, **options), [0])[1], expected)


def test_a_negative_period():
    with pytest.raises(ValueError, match="vis_period must be >= 0, got -1"):
        detector.build(vis_period=-1)


def test_vis_period_of_a_lazy_config(tmp_path):
    run = toy.Run(tmp_path, **{"model.vis_period": 2, "train.max_iter": 3}).train()
    files = list(run.output_dir.glob("events.out.tfevents*"))
    assert b"GT bounding boxes" in b"".join(path.read_bytes() for path in files)


def test_resuming_a_yaml_run_in_float16(tmp_path, caplog):
    """It steps on a GPU only, but its state loads anywhere."""
    trainer = Trainer(toy_cfg(tmp_path, "DATASETS.TEST", ()))
    state = trainer.state_dict()
    assert "grad_scaler" not in state["_trainer"]
    trainer._trainer.grad_scaler = GradScaler("cpu")
    with caplog.at_level(logging.WARNING):
        trainer.load_state_dict(state)
    assert "gradient scaler starts with its initial scale" in caplog.text
    state = trainer.state_dict()
    assert "scale" in state["_trainer"]["grad_scaler"]
    trainer._trainer.grad_scaler = None
    trainer.load_state_dict(state)  # and back


def test_float16_on_the_cpu(tmp_path):
    with pytest.raises(ConfigError, match=r"SOLVER\.AMP\.ENABLED is float16, which needs a GPU"):
        Trainer(toy_cfg(tmp_path, "SOLVER.AMP.ENABLED", True))
