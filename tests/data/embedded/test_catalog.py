import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager

from atss_d2.data import dataset_root, prepare_shapes
from atss_d2.data.embedded import catalog, shapes

_NAMES = ["trees_train", "trees_train_fit", "trees_train_dev", "trees_val", "trees_site2"]
_NAMES += ["shapes_train", "shapes_val"]


@pytest.fixture
def small_shapes(monkeypatch, tmp_path):
    """An empty root in which the shapes are few."""
    for name in shapes.SHAPES_SPLITS:
        monkeypatch.setitem(shapes.SHAPES_SPLITS, name, 6)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def test_root_is_read_at_call_time(monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert str(dataset_root()) == "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert dataset_root() == tmp_path
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert dataset_root() == type(tmp_path).home() / "data"


@pytest.mark.parametrize("name", _NAMES)
def test_metadata_is_complete_before_the_first_load(name):
    catalog.register_datasets()  # again, which is harmless
    assert name in DatasetCatalog
    metadata = MetadataCatalog.get(name)
    assert metadata.evaluator_type == "coco"
    num_classes = 1 if name.startswith("trees") else 6
    assert len(metadata.thing_classes) == num_classes
    assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(num_classes)}


def test_missing_files_are_named_with_the_fix(monkeypatch, tmp_path):
    name = "trees_train_fit"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    message = rf"{tmp_path}/trees/annotations/{name}.json .*make setup.*prepare_data.py"
    with pytest.raises(FileNotFoundError, match=message):
        DatasetCatalog.get(name)
    with pytest.raises(FileNotFoundError, match=message):
        COCOEvaluator(name, output_dir=str(tmp_path))


def test_paths_resolve_below_the_root(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "a.pth").write_bytes(b"weights")
    path = "atss_d2://pretrained/a.pth"
    assert PathManager.get_local_path(path) == str(tmp_path / "pretrained" / "a.pth")
    assert PathManager.isfile(path)
    assert PathManager.exists(path)
    assert not PathManager.isfile("atss_d2://pretrained")
    assert PathManager.isdir("atss_d2://pretrained")
    assert PathManager.ls("atss_d2://pretrained") == ["a.pth"]
    with PathManager.open(path, "rb") as file:
        assert file.read() == b"weights"
    with pytest.raises(ValueError, match="read-only, got mode 'wb'"):
        PathManager.open(path, "wb")
    assert not PathManager.exists("atss_d2://pretrained/b.pth")
    with pytest.raises(FileNotFoundError, match=r"pretrained/b.pth .*DETECTRON2_DATASETS"):
        PathManager.open("atss_d2://pretrained/b.pth")


def test_the_root_may_change_after_the_import(small_shapes, monkeypatch):
    first = DatasetCatalog.get("shapes_val")  # drawn now
    assert len(first) == 6
    other = small_shapes / "other"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(other))
    second = DatasetCatalog.get("shapes_val")
    assert first[0]["file_name"] == str(small_shapes / "shapes/images/shapes_val/000000.png")
    assert second[0]["file_name"] == str(other / "shapes/images/shapes_val/000000.png")


def _outputs(record, shift=0.0):
    """The ground truth as a detector would return it."""
    objects = [a for a in record["annotations"] if not a["iscrowd"]]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]
    instances = Instances((record["height"], record["width"]))
    instances.pred_boxes = Boxes(torch.tensor(np.array(boxes).reshape(-1, 4) + shift))
    instances.pred_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
    instances.scores = torch.ones(len(objects))
    return {"instances": instances}


def test_ground_truth_scores_100_ap(small_shapes):
    # The evaluator comes first: it must find the annotations without a loaded data set.
    evaluator = COCOEvaluator("shapes_val", output_dir=str(small_shapes / "output"))
    evaluator.reset()
    dicts = DatasetCatalog.get("shapes_val")
    assert sum(a["iscrowd"] for r in dicts for a in r["annotations"]) == 1  # is not missed
    for record in dicts:
        evaluator.process([record], [_outputs(record)])
    results = evaluator.evaluate()["bbox"]
    assert results["AP"] == pytest.approx(100)
    assert results["APs"] == pytest.approx(100)
    assert results["AP-star"] == pytest.approx(100)

    evaluator.reset()
    for record in dicts:
        evaluator.process([record], [_outputs(record, shift=4.0)])
    assert evaluator.evaluate()["bbox"]["AP"] < 90


@pytest.mark.skipif(
    not (dataset_root() / "trees/annotations/trees_site2.json").is_file(),
    reason="the photographs are not there: run `python tools/prepare_data.py --trees`",
)
@pytest.mark.parametrize("name", ["trees_train_dev", "trees_val", "trees_site2"])
def test_the_ground_truth_of_the_photographs_scores_100_ap(name, tmp_path):
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [_outputs(record)])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_shapes_of_another_version_are_drawn_anew(small_shapes):
    prepare_shapes(small_shapes)
    path = small_shapes / "shapes/annotations/shapes_val.json"
    path.write_text(path.read_text().replace('"version": "1, ', '"version": "0, '))
    DatasetCatalog.get("shapes_val")
    assert '"version": "1, 6 images"' in path.read_text()
