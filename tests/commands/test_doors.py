"""Commands that are printed for the next step work as they are typed, from any folder."""

import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from atss_d2.commands import doors
from atss_d2.engine import apply_overrides

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("script", ["train_net.py", "tools/start_project.py", "widgets.py"])
def test_scripts_of_the_checkout_from_another_folder(monkeypatch, tmp_path, script):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / script)])
    _, path = doors.program("predict")
    assert Path(path).is_file()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script])
    assert doors.program("predict")[1] == "tools/demo.py"
    assert doors.program("train")[1] == "train_net.py"


@pytest.mark.parametrize("argv", ["atss-d2 train", "/usr/bin/atss-d2"])
def test_the_console_script(monkeypatch, argv):
    monkeypatch.setattr(sys, "argv", [argv])
    assert shlex.join(doors.program("predict")) == "atss-d2 predict"


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]) | st.sampled_from("\\' ")))
def test_any_path_is_a_value_of_an_override(text):
    if "${" in text:  # OmegaConf's own
        return
    cfg = OmegaConf.create({"train": {"init_checkpoint": ""}})
    apply_overrides(cfg, [f"train.init_checkpoint={doors.quote_value(text)}"])
    assert cfg.train.init_checkpoint == text
