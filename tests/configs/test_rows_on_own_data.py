"""The lines of docs/quality.md that turn a project's config into another detector."""

import ast
import re
from pathlib import Path

import pytest
from detectron2.config import instantiate

from atss_d2.config import get_config, get_config_path
from atss_d2.modeling import ATSS
from tests.toy import KEYS

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "atss_iou": "",
    "atss_vfl": "",
    "gfl": "GFL",
    "gflv2": "GFLv2",
    "paa": "",
    "vfnet": "VFNet",
    "ddod": "DDOD",
    "tood": "TOOD",
    "atss_dyhead": "DyHead",
}


def lines_of(row: str) -> str:
    """The code of a config without its docstring and its imports of other configs."""
    tree = ast.parse(Path(get_config_path(f"coco/{row}_R_50_FPN_1x")).read_text())
    bases = [x.module for x in tree.body if isinstance(x, ast.ImportFrom) and x.level]
    earlier = [lines_of(x.split("_R_50")[0]) for x in bases if not x.startswith("atss_R_50")]
    kept = [x for x in tree.body[1:] if not (isinstance(x, ast.ImportFrom) and x.level)]
    return "\n".join([*earlier, *map(ast.unparse, kept)])


def lines_of_document(name: str) -> list[str]:
    """The lines that the table has for a detector."""
    text = (ROOT / "docs" / "quality.md").read_text()
    rows = re.findall(r"^\| ([\w, ]+) \| `(model\.[^`]+)`", text, flags=re.MULTILINE)
    return [line for names, line in rows if name in names.split(", ")]


@pytest.mark.parametrize("row", ROWS)
def test_with_the_lines_of_the_table_it_is_built(row):
    cfg = get_config("custom/atss_mobilenetv2")
    cfg.model.anchor_generator.sizes = [[32], [64], [128], [256]]
    names = {key: cfg[key] for key in KEYS}
    exec(lines_of(row), names)
    more = lines_of_document(ROWS[row]) if ROWS[row] else []
    assert bool(more) == bool(ROWS[row])
    for line in more:
        if not line.startswith("model.matcher"):  # a longer warm-up is only a warning
            with pytest.raises(ValueError, match=line.split(" = ")[0].rpartition(".")[2]):
                instantiate(cfg.model)
        exec(line, names)
    assert isinstance(instantiate(cfg.model), ATSS)
