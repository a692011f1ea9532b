"""docs/deployment.md: what it shows is run, what it names is there."""

import re
import shutil

import numpy as np
import torch

from tests.deployment.conftest import ROOT
from tests.detector import build

TEXT = (ROOT / "docs" / "deployment.md").read_text()


def test_snippets_run(exported, tmp_path, monkeypatch):
    load, export, script = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copy(exported["onnx"].path, "model.onnx")
    names = {"images": np.zeros((2, 3, 70, 60), dtype=np.uint8)}
    exec(load, names)
    assert names["boxes"].shape == (2, 100, 4)

    images = torch.randint(0, 256, (2, 3, 70, 60), dtype=torch.uint8)
    names = {"model": build(num_classes=1).eval(), "images": images}
    exec(export, names)
    exec(script, names)
    (found,) = names["scripted"]([{"image": images[0]}])
    *_, num_detections = torch.jit.load("trees.ts")(images[:1])
    assert len(found.scores) >= int(num_detections[0]) > 0


def test_flags_and_formats_are_those_of_the_tool(export_model):
    helped = export_model.get_parser().format_help()
    flags = set(re.findall(r"`(--[a-z0-9-]+)", TEXT))
    # Those of `python -m benchmarks` and of predict_exported.py are no flags of this tool.
    for flag in flags - {"--compile"}:
        assert flag in helped, flag
    for name, file_format in export_model.FORMATS.items():
        assert re.search(rf"^\| `{name}` \| `{file_format.file_name}`", TEXT, re.MULTILINE), name
