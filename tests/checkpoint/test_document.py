"""What docs/checkpoints.md shows on safe loading and safetensors is run."""

import argparse
import re
from pathlib import Path

import pytest
import torch

from atss_d2.checkpoint import load_file

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"


def block_of(section: str) -> str:
    _, _, text = DOCUMENT.read_text().partition(f"## {section}\n")
    return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


@pytest.mark.skipif(
    not hasattr(torch.serialization, "safe_globals"), reason="safe_globals came with torch 2.5"
)
def test_the_snippets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = {"a": torch.ones(2)}
    torch.save({"model": weights, "args": argparse.Namespace(lr=1)}, "model.pth")
    exec(block_of("Safe loading"), {})
    torch.testing.assert_close(load_file("weights.pth"), {"model": weights})

    folder = Path("output/my_model")
    folder.mkdir(parents=True)
    torch.save({"model": weights, "trainer": {"iteration": 3}}, folder / "model_final.pth")
    exec(block_of("safetensors"), {})
    loaded = load_file("weights.safetensors")
    torch.testing.assert_close(loaded.pop("model"), weights)
    assert loaded == {"metadata": {"trained_on": "my_train"}}
