"""Both kinds of config say the same things, in one place."""

import ast
from pathlib import Path

import pytest

import atss_d2
from atss_d2.config import get_config, load_view, view_of
from atss_d2.config.views import LazyView, YamlView

LAZY, YAML = "coco/atss_R_50_FPN_1x", "yaml/atss_R_50_FPN_1x.yaml"


def test_the_paper_s_config_is_the_same_in_both():
    lazy, yaml = view_of(get_config(LAZY)), load_view(YAML)
    assert type(lazy) is LazyView
    assert type(yaml) is YamlView
    assert lazy.dataset_names("train", "test") == ["coco_2017_train", "coco_2017_val"]
    assert yaml.dataset_names("train", "test") == ["coco_2017_train", "coco_2017_val"]
    for name in ("num_classes", "weights", "input_format", "categories", "evaluation_lacks"):
        assert getattr(lazy, name) == getattr(yaml, name)
    assert list(map(repr, lazy.test_augmentations)) == list(map(repr, yaml.test_augmentations))


@pytest.mark.parametrize("config", [LAZY, YAML])
def test_what_messages_name_is_a_key(config):
    view = load_view(config)
    view.apply(view.more_detections.split())
    for key in (view.output_dir_key, view.num_classes_key, view.weights_key):
        node = view.cfg
        for part in key.split("."):
            node = node[part]


def test_nobody_else_asks_for_the_kind():
    """``isinstance(..., CfgNode)`` is in views.py, and where a yaml tree is walked."""
    root = Path(atss_d2.__file__).parent
    found = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "isinstance"
        and "CfgNode" in ast.unparse(node.args[1])
    ]
    assert sorted(found) == ["config/arguments.py", "config/overrides.py", "config/views.py"]
