"""Files that are there as a whole or not at all."""

import collections
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.checkpoint import load_file, save_file
from atss_d2.checkpoint.loading import import_safetensors

SUFFIXES = [".pth", ".safetensors"]
each_suffix = pytest.mark.parametrize("suffix", SUFFIXES)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]
shapes = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=50)
@given(
    tensors=st.dictionaries(st.text(min_size=1), st.tuples(shapes, st.sampled_from(DTYPES))),
    metadata=st.dictionaries(st.text(), st.text()),
    suffix=st.sampled_from(SUFFIXES),
)
def test_round_trip(tmp_path_factory, tensors, metadata, suffix):
    path = tmp_path_factory.getbasetemp() / f"round_trip{suffix}"
    state = {
        name: torch.randn(shape).to(dtype)
        for name, (shape, dtype) in tensors.items()
        if name != "__metadata__"  # which the format has for itself
    }
    assert save_file(state, path, metadata) == path
    loaded = load_file(path)
    assert loaded.pop("metadata", {}) == metadata
    assert set(loaded) == {"model"}
    torch.testing.assert_close(loaded["model"], state, rtol=0, atol=0)
    for name, tensor in state.items():
        assert loaded["model"][name].dtype == tensor.dtype


@each_suffix
def test_tensors_of_all_kinds(tmp_path, suffix):
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {
        "base": base,
        "same": base,
        "view": base[1:],
        "transposed": base.transpose(0, 2),
        "steps": base[:, ::2],
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "channels_last": torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "nothing": torch.zeros(0, 2),
        "no_more": torch.zeros(0),
        "numpy": np.arange(3, dtype=np.float32),
        "number": np.float32(2),
    }
    loaded = load_file(save_file(state, tmp_path / f"a{suffix}"))["model"]
    expected = {name: torch.as_tensor(tensor).detach() for name, tensor in state.items()}
    torch.testing.assert_close(dict(loaded), expected, rtol=0, atol=0)
    assert not any(tensor.requires_grad for tensor in loaded.values())
    assert state["parameter"].requires_grad
    loaded["base"].zero_()
    if suffix == ".safetensors":  # tensors that shared memory are independent
        assert loaded["same"].sum() > 0


@each_suffix
def test_from_one_format_to_the_other(tmp_path, suffix):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {"model": model.state_dict(), "metadata": {"convention": "authors"}}
    first = save_file(state, tmp_path / f"a{suffix}")
    for other in SUFFIXES:
        again = load_file(save_file(load_file(first), tmp_path / f"b{other}"))
        torch.testing.assert_close(dict(again["model"]), dict(model.state_dict()))
        assert again["metadata"] == {"convention": "authors"}
        changed = save_file(load_file(first), tmp_path / f"c{other}", {"convention": "mmdet"})
        assert load_file(changed)["metadata"] == {"convention": "mmdet"}


def test_the_library_reads_what_is_written(tmp_path):
    path = save_file({"model": {"a": torch.ones(2)}}, tmp_path / "a.safetensors")
    torch.testing.assert_close(import_safetensors().load_file(path), {"a": torch.ones(2)})
    path = save_file({"a": torch.ones(2)}, tmp_path / "a.pth")
    assert set(torch.load(path)) == {"model"}


def test_versions_of_modules_stay_in_files_of_torch(tmp_path):
    state = torch.nn.BatchNorm2d(2).state_dict()
    loaded = load_file(save_file(state, tmp_path / "a.pth"))["model"]
    assert loaded._metadata == state._metadata
    assert isinstance(loaded, collections.OrderedDict)


@pytest.mark.parametrize(
    ("state", "name", "metadata", "message"),
    [
        ({"a": torch.zeros(1)}, "a.pkl", None, r"'.*a\.pkl' must end in one of .pth, .safetensors"),
        ({"a": 1}, "a.pth", None, "weights must be tensors, 'a' is a int"),
        ({"model": {"b": [1]}}, "a.safetensors", None, "'b' is a list"),
        ({"a": torch.zeros(1)}, "a.pth", {"k": 1}, "metadata must be text, 'k' is 1"),
        ({"model": {}, "optimizer": {}}, "a.safetensors", None, "but not optimizer: write a .pth"),
    ],
)
def test_what_cannot_be_written(tmp_path, state, name, metadata, message):
    with pytest.raises(ValueError, match=message):
        save_file(state, tmp_path / name, metadata)
    assert list(tmp_path.iterdir()) == []


# Interruptions


class Interrupted(io.FileIO):
    """A file that fails in the middle of what is written."""

    error: BaseException

    def write(self, data):
        super().write(bytes(data)[: len(data) // 2])
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_there", [True, False])
@each_suffix
def test_a_write_that_fails_in_the_middle(tmp_path, monkeypatch, suffix, is_there, error):
    path = tmp_path / f"a{suffix}"
    if is_there:
        save_file({"a": torch.ones(2)}, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(Interrupted, "error", error, raising=False)
    monkeypatch.setattr(Path, "open", lambda file, mode: Interrupted(file, mode))
    with pytest.raises(type(error), match=str(path) if isinstance(error, OSError) else None):
        save_file({"a": torch.zeros(1000)}, path)
    monkeypatch.undo()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_file_has_the_usual_mode_and_is_alone(tmp_path):
    path = save_file({"a": torch.zeros(5)}, tmp_path / "new" / "a.pth")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
