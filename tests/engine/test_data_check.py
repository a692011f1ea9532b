"""Data sets that do not fit the model, or are not there, are found before the first iteration."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from atss_d2 import add_atss_config, get_config
from atss_d2.config import view_of
from atss_d2.data import DataError, register_coco
from atss_d2.engine.data_check import (
    check_categories,
    check_dataset_files,
    check_images,
    explained,
)
from tests import toy

THREE = [{"id": 3, "name": "car"}, {"id": 8, "name": "bus"}, {"id": 20, "name": "tram"}]


@pytest.fixture
def register(tmp_path):
    """Registers a data set of no images with some categories; its file is returned."""
    names = []

    def register(name, categories=THREE):
        (tmp_path / "images").mkdir(exist_ok=True)
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
        register_coco(name, path, tmp_path / "images")
        names.append(name)
        return path

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def lazy(num_classes, train="check_train", test="check_val"):
    cfg = get_config("coco/atss_R_50_FPN_1x")
    cfg.model.num_classes = num_classes
    cfg.dataloader.train.dataset.names = train
    cfg.dataloader.test.dataset.names = test
    return cfg


def yaml(num_classes, meta_architecture="ATSS"):
    cfg = get_detectron2_cfg()
    add_atss_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    node = cfg.MODEL.ATSS if meta_architecture == "ATSS" else cfg.MODEL.RETINANET
    node.NUM_CLASSES = num_classes
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("check_train",), ("check_val",)
    return cfg


@pytest.mark.parametrize(
    ("build", "num_classes", "assignment"),
    [
        (lazy, 1, "set model.num_classes=3"),
        (yaml, 2, "set MODEL.ATSS.NUM_CLASSES 3"),
        (lambda n: yaml(n, "RetinaNet"), 5, "set MODEL.RETINANET.NUM_CLASSES 3"),
    ],
)
def test_a_wrong_number_of_classes(register, build, num_classes, assignment):
    register("check_train")
    register("check_val")
    with pytest.raises(ValueError, match="3 classes \\(car, bus, tram\\)") as info:
        check_categories(build(num_classes))
    assert assignment in str(info.value)
    cfg = build(3)
    assert check_categories(cfg) == THREE
    assert view_of(cfg).categories == THREE  # so that config.yaml and checkpoints have them


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (THREE[:2], "'check_val' has 2"),
        ([THREE[0], {"id": 8, "name": "van"}, THREE[2]], "class 1 is 'bus' .* but 'van'"),
        ([THREE[0], {"id": 30, "name": "bus"}, THREE[2]], "class 1 is 'bus' .* but 'tram'"),
    ],
)
def test_training_and_validation_must_agree(register, other, message):
    register("check_train")
    register("check_val", other)
    with pytest.raises(ValueError, match=message):
        check_categories(lazy(3))


def test_ids_and_spelling_may_differ(register):
    register(
        "check_train", [{**c, "id": i, "name": c["name"].upper()} for i, c in enumerate(THREE)]
    )
    register("check_val")
    # A file whose ids count from 0 tells less than the other.
    assert check_categories(lazy(3)) == THREE


def test_the_config_must_agree_too(register):
    register("check_train")
    register("check_val")
    cfg = lazy(3)
    cfg.categories = THREE[::-1]
    with pytest.raises(ValueError, match="class 0 is 'tram' .* in the config"):
        check_categories(cfg)


def test_nothing_known_is_no_error():
    cfg = lazy(7, train="unknown_1", test="unknown_2")
    assert check_categories(cfg) == []
    assert "categories" not in cfg


def test_data_sets_that_are_not_there(register, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    cfg = lazy(3)
    with pytest.raises(DataError, match="there is no data set 'check_train': a config file"):
        check_dataset_files(cfg, with_training=True)
    path = register("check_train")
    register("check_val")
    cfg.dataloader.test.dataset.names = "check_vall"
    with pytest.raises(DataError, match="no data set 'check_vall' \\(did you mean check_val"):
        check_dataset_files(cfg, with_training=True)
    cfg.dataloader.test.dataset.names = "check_val"
    check_dataset_files(cfg, with_training=True)
    path.unlink()
    with pytest.raises(DataError, match=f"'check_train' needs '{path}', which does not exist"):
        check_dataset_files(cfg, with_training=True)
    check_dataset_files(cfg, with_training=False)
    (tmp_path / "images").rmdir()
    with pytest.raises(DataError, match="'check_val' needs '.*images', which does not exist"):
        check_dataset_files(cfg, with_training=False)
    with pytest.raises(DataError, match="instances_train2017.json', .* or set DETECTRON2_DATASETS"):
        check_dataset_files(get_config("coco/atss_R_50_FPN_1x"), with_training=True)


def test_images_that_are_not_there(tmp_path):
    (tmp_path / "a.jpg").touch()
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "nowhere" / "a.jpg"]
    dataset = [{"file_name": str(path)} for path in paths]
    check_images(dataset[:1], "training")
    check_images([{"file_name": "s3://bucket/a.jpg"}, {"other": 1}], "training")
    with pytest.raises(DataError, match="2 of 3 images of the training set .*b.jpg'"):
        check_images(dataset, "training")


@pytest.mark.parametrize(
    "content",
    [
        "not json",
        "[]",
        '{"images": []}',
        '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 3, "name": "car"}]}',
    ],
)
def test_annotations_that_are_not_coco(register, content):
    path = register("check_val", THREE[:1])
    path.write_text(content)
    cfg = lazy(1, test="check_val")
    message = f"the test set 'check_val' \\({path}\\) cannot be loaded"
    with pytest.raises(DataError, match=message), explained(cfg, "test"):
        DatasetCatalog.get("check_val")


@pytest.mark.parametrize(
    ("annotation", "found"),
    [({}, "no bbox"), ({"bbox": "x"}, "the bbox 'x'"), ({"bbox": [1, 2, 3]}, "the bbox [1, 2, 3]")],
)
def test_annotations_without_a_box_are_named(tmp_path, annotation, found):
    """They ended in KeyError 'bbox' or "'str' object has no attribute 'clone'" of the mapper."""
    path = tmp_path / "a.jpg"
    path.touch()
    good = {"file_name": str(path), "annotations": [{"bbox": [1, 2, 3, 4]}, {"bbox": (0.0,) * 5}]}
    check_images([good], "test")
    with pytest.raises(DataError) as info:
        check_images([good, {**good, "annotations": [annotation]}], "test")
    assert str(info.value) == (
        f"an annotation of '{path}' in the test set has {found}: give it the four numbers x, y, "
        "width and height"
    )


def test_other_errors_pass(register):
    with pytest.raises(ZeroDivisionError), explained(lazy(1), "train"):
        raise ZeroDivisionError
    with pytest.raises(DataError, match="^as it was$"), explained(lazy(1), "train"):
        raise DataError("as it was")
    with pytest.raises(DataError, match="needs 'x.json'"), explained(lazy(1), "train"):
        Path("x.json").read_text()


def test_a_module_that_the_config_names_may_register_the_data(register, tmp_path, monkeypatch):
    """As in the config.yaml of a run whose mapper and data sets are in one file of the user's."""
    register("check_val")
    (tmp_path / "own_data.py").write_text(
        "from detectron2.data import DatasetCatalog\n"
        "DatasetCatalog.register('own_train', list)\n"
        "class Mapper: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = lazy(3, train="own_train")
    cfg.dataloader.train.mapper._target_ = "own_data.Mapper"
    try:
        check_dataset_files(cfg, with_training=True)
    finally:
        DatasetCatalog.pop("own_train", None)
    cfg.dataloader.train.mapper._target_ = "no_such_module.Mapper"
    with pytest.raises(DataError, match="there is no data set 'own_train'"):
        check_dataset_files(cfg, with_training=True)


def test_boxes_without_numbers_are_counted_when_the_checks_are_off(tmp_path, monkeypatch, caplog):
    """They vanished without a word."""
    monkeypatch.setenv("TOY_DATA", "")  # restored afterwards
    toy.write_dataset(tmp_path)
    for name, indices in (("toy_train", (2, 5)), ("toy_val", (1,))):
        content = json.loads((tmp_path / f"{name}.json").read_text())
        for index in indices:
            content["annotations"][index]["bbox"][2] = math.nan
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    overrides = {"train.check_data": False, "train.max_iter": 4, "train.eval_period": 2}
    toy.Run(tmp_path, **overrides).train()
    texts = [x.getMessage() for x in caplog.records if "NaN or inf" in x.getMessage()]
    # Once each, although the test set is loaded for every evaluation.
    assert [text.partition(", e.g.")[0] for text in texts] == [
        "1 box of the test set has NaN or infinity",
        "2 boxes of the training set have NaN or infinity",
    ]
    assert "nan, " in texts[1]
    assert f"of '{tmp_path}/toy_train_2.png' (image_id 2): " in texts[1]
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())  # another process

    own = ["MODEL.ATSS.CHECK_DATA", False, "MODEL.ATSS.TRAIN.ON_BAD_IMAGE", "skip"]
    caplog.clear()
    toy.YamlRun(tmp_path / "yaml", *own).train()
    assert [x.getMessage() for x in caplog.records if "NaN or inf" in x.getMessage()] == texts[::-1]
