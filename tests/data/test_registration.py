"""Registration that may be repeated, and categories on their way from a data set to a config."""

import json

import pytest
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import OmegaConf

from atss_d2 import add_atss_config
from atss_d2.config import load_config, view_of
from atss_d2.data import register_coco
from atss_d2.data.categories import (
    categories_of_dataset,
    parse_categories,
    read_categories,
)

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 12, "name": "dog: small"}]


@pytest.fixture(autouse=True)
def unregistered():
    """Forgets what a test registers."""
    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for name in set(DatasetCatalog) - before[0]:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog) - before[1]:
        MetadataCatalog.remove(name)


def write_json(path, categories=CATEGORIES):
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return str(path)


def test_the_same_registration_again_changes_nothing(tmp_path):
    for _ in range(3):
        register_coco("cats", tmp_path / "a.json", tmp_path)
    assert MetadataCatalog.get("cats").json_file == str(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"'cats' is already registered with .*a\.json"):
        register_coco("cats", tmp_path / "b.json", tmp_path)


SOURCE = """
from atss_d2 import get_config
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

PATH = "one.json"
register_coco_instances("from_config", {}, "train.json", "images")
DatasetCatalog.register("function", lambda: [{"file_name": PATH}])
model = get_config("coco/atss_R_50_FPN_1x").model  # loads a config in a config
"""


def test_a_config_that_registers_is_loaded_any_number_of_times(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(SOURCE)
    for _ in range(3):
        load_config(path)
    assert DatasetCatalog.get("function") == [{"file_name": "one.json"}]
    # Detectron2's own rule holds outside of it.
    with pytest.raises(AssertionError, match="already registered"):
        DatasetCatalog.register("function", list)


LOADERS = """
import numpy as np
from detectron2.data import DatasetCatalog
from functools import partial

NAMES = ["a"]

def read(folder, again=True):
    return read(folder, again=False) if again else [{"file_name": folder, "names": NAMES}]

def register(name, loader):
    DatasetCatalog.register(name, lambda: loader(name))

class Loader:
    def __init__(self, folder):
        self.folder, self.mask, self.me = folder, np.zeros(3), self
    def __call__(self):
        return read(self.folder)
    def load(self):
        return self()

register("closure", read)
DatasetCatalog.register("default", lambda loader=read, *, folder="x": loader(folder))
DatasetCatalog.register("partial", partial(read, "x"))
DatasetCatalog.register("class", partial(list, (1, 2)))
DatasetCatalog.register("object", Loader("x"))
DatasetCatalog.register("method", Loader("x").load)
model = {}
"""


def test_loaders_that_hold_functions_and_objects_of_the_file_are_compared(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(LOADERS)
    for _ in range(3):
        load_config(path)
    assert DatasetCatalog.get("method") == [{"file_name": "x", "names": ["a"]}]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("closure", '"file_name": folder', '"file_name": folder + "/"'),
        ("closure", 'NAMES = ["a"]', 'NAMES = ["b"]'),
        ("default", 'folder="x"', 'folder="y"'),
        ("partial", 'partial(read, "x")', 'partial(read, "y")'),
        ("class", "(1, 2)", "(1, 3)"),
        ("object", '"object", Loader("x")', '"object", Loader("y")'),
        ("object", "return read(self.folder)", "return read(self.folder)[:1]"),
        ("method", 'Loader("x").load', 'Loader("y").load'),
    ],
)
def test_another_content_of_what_a_loader_holds_is_an_error(tmp_path, name, old, new):
    path = tmp_path / "config.py"
    path.write_text(LOADERS)
    load_config(path)
    assert LOADERS.count(old) == 1
    path.write_text(LOADERS.replace(old, new))
    with pytest.raises(ValueError, match=f"'{name}' is already registered with another content"):
        load_config(path)


def test_categories_come_from_the_file_before_the_data_set_was_loaded(tmp_path):
    register_coco("cats", write_json(tmp_path / "a.json", CATEGORIES[::-1]), tmp_path)
    assert categories_of_dataset("cats") == CATEGORIES  # in the order of their ids
    assert categories_of_dataset("nobody knows it") == []


def test_categories_come_from_the_metadata(tmp_path):
    MetadataCatalog.get("by_function").set(thing_classes=["a", "b"])
    assert categories_of_dataset("by_function") == [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]
    coco = categories_of_dataset("coco_2017_val")
    assert (len(coco), coco[0], coco[-1]) == (
        80,
        {"id": 1, "name": "person"},
        {"id": 90, "name": "toothbrush"},
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not a JSON file"),
        ("<html>", "is not a JSON file"),
        ('{"categories": 3}', "must be a list"),
        ('{"categories": ["cat"]}', "must have an id and a name"),
        ('{"categories": [{"id": "1", "name": "cat"}]}', "not an integer"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "id 1 occurs twice"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as info:
        read_categories(str(path))
    assert str(path) in str(info.value)
    with pytest.raises(FileNotFoundError, match=r"nowhere.json': correct the path where"):
        read_categories(str(tmp_path / "nowhere.json"))


def test_both_kinds_of_config_hold_categories(tmp_path):
    lazy = OmegaConf.create({"model": {}})
    yaml = get_detectron2_cfg()
    add_atss_config(yaml)
    yaml.freeze()
    for cfg in (lazy, yaml):
        assert view_of(cfg).categories == []
        view_of(cfg).categories = CATEGORIES
        assert view_of(cfg).categories == CATEGORIES
    assert yaml.is_frozen()
    (tmp_path / "a.yaml").write_text(yaml.dump())
    assert view_of(load_config(tmp_path / "a.yaml")).categories == CATEGORIES
    # A cfg of Detectron2 without our keys has no place for them.
    other = get_detectron2_cfg()
    view_of(other).categories = CATEGORIES
    assert view_of(other).categories == []


def test_a_config_file_may_write_ids_and_names(tmp_path):
    path = tmp_path / "config.py"
    path.write_text('categories = {7: "cat", 12: "dog: small"}\nmodel = {}\n')
    assert view_of(load_config(path)).categories == CATEGORIES


def test_values_that_are_no_categories_are_refused():
    assert parse_categories(None) == []
    with pytest.raises(ValueError, match="must be a list"):
        parse_categories("cat")
