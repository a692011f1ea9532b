import importlib.util
from pathlib import Path

import pytest

from atss_d2.data import DataError
from atss_d2.data.embedded import shapes

_PATH = Path(__file__).resolve().parents[3] / "tools" / "prepare_data.py"


@pytest.fixture
def tool(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("prepare_data", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in shapes.SHAPES_SPLITS:
        monkeypatch.setitem(shapes.SHAPES_SPLITS, name, 1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return module


def test_only_the_named_part_is_prepared(tool, tmp_path, capsys):
    for _ in range(2):
        assert tool.main(["--shapes"]) == 0
        assert capsys.readouterr().out == f"shapes: {tmp_path}/data/shapes\n"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["shapes"]


def test_an_error_is_one_sentence(tool, monkeypatch, capsys):
    def fail(root):
        raise DataError("no network: try again")

    monkeypatch.setitem(tool._PARTS, "trees", fail)
    assert tool.main(["--trees"]) == 1
    assert capsys.readouterr().err == "error: no network: try again\n"
