import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from atss_d2 import engine
from atss_d2.commands import train
from atss_d2.engine import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_glibc_takes_the_setting():
    # In a process of its own: the setting stays for the rest of it.
    code = f"import runpy; m = runpy.run_path({memory.__file__!r}); print(m['keep_freed_memory']())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "True\n", result.stderr


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(sys, "platform", "linux")
    for library, expected in ((object(), False), (SimpleNamespace(mallopt=lambda *_: 1), True)):
        monkeypatch.setattr(memory.ctypes, "CDLL", lambda name, library=library: library)
        assert memory.keep_freed_memory() is expected
    monkeypatch.setattr(memory.ctypes.util, "find_library", lambda name: None)
    assert memory.keep_freed_memory() is False


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", ["memory", "train"]), ("meta", ["train"])]
)
def test_the_command_asks_for_it_before_it_trains_on_a_cpu(monkeypatch, device, expected):
    calls = []
    monkeypatch.setattr(engine, "keep_freed_memory", lambda: calls.append("memory"))
    monkeypatch.setattr(engine, "do_train", lambda cfg, resume: calls.append("train"))
    monkeypatch.setattr(train, "print_ending", lambda *_: None)
    arguments = train.get_parser().parse_args([])
    train.run_lazy(OmegaConf.create({"train": {"device": device}}), arguments)
    assert calls == expected
