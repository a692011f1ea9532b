"""What files give, and that none of them is run."""

import argparse
import collections
import functools
import io
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.checkpoint import CheckpointError, load_file, save_file
from atss_d2.checkpoint.numpy_pickle import MAKERS

# By which numpy pickles arrays and numbers; the module depends on its version.
_reconstruct, scalar = np.array(0).__reduce__()[0], np.float64(0).__reduce__()[0]


class Call:
    """Pickled as the call of a function, with a state to be set."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


def weights() -> dict:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return {"model": model.state_dict(), "iteration": 3, "names": ["a", "b"]}


def write(path: Path, content, **options) -> Path:
    """``.pkl`` by pickle, else by torch; ``zip=False`` is the format of torch before 1.6."""
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=options.get("protocol", 2)))
    else:
        is_zip = options.get("zip", True)
        torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


def assert_equal(loaded: dict, expected: dict) -> None:
    torch.testing.assert_close(loaded["model"], expected["model"])
    assert {**loaded, "model": 0} == {**expected, "model": 0}


FORMATS = {
    "zip.pth": {},
    "legacy.pth": {"zip": False},
    **{f"protocol{i}.pkl": {"protocol": i} for i in range(6)},
}
each_format = pytest.mark.parametrize("name", FORMATS)


# What is admitted


@pytest.mark.parametrize(
    ("name", "is_zip"), [("a.pth", True), ("a.pt", False), ("a.pth.tar", False), ("a", True)]
)
def test_files_of_torch(tmp_path, name, is_zip):
    expected = weights()
    loaded = load_file(write(tmp_path / name, expected, zip=is_zip))
    assert_equal(loaded, expected)
    assert loaded["model"]._metadata == expected["model"]._metadata


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.arange(24, dtype=">f8").reshape(2, 3, 4)[:, ::2],
    np.zeros((0, 3), np.float16),
    np.array(5, np.uint8),
    np.array([True, False]),
    np.array([1 + 2j]),
]


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays(tmp_path, protocol):
    model = collections.OrderedDict((str(i), array) for i, array in enumerate(ARRAYS))
    model._metadata = {"": {"version": 2}}
    model.other = "not torch's"
    rest = {"scalar": np.float64(0.5), "list": [(ARRAYS[0], None), {1, 2}, b"\xff", b"", 1j]}
    path = write(tmp_path / "a.pkl", {"model": model, "again": model, **rest}, protocol=protocol)
    loaded = load_file(path)
    assert loaded["again"] is loaded["model"]
    assert vars(loaded["model"]) == {"_metadata": model._metadata}
    for array, expected in zip(loaded["model"].values(), ARRAYS, strict=True):
        assert type(array) is np.ndarray
        assert array.dtype == expected.dtype.newbyteorder("=")
        assert array.flags.writeable
        np.testing.assert_array_equal(array, expected)
        torch.testing.assert_close(torch.from_numpy(array).numpy(), array)
    assert loaded["scalar"] == 0.5
    assert type(loaded["scalar"]) is np.float64
    (array, none), numbers, *more = loaded["list"]
    assert array is loaded["model"]["0"]  # as in the file
    assert (none, numbers, more) == (None, {1, 2}, [b"\xff", b"", 1j])


def test_pickles_of_python_2_and_numpy_1(tmp_path):
    # Text is a string of bytes there, and so are the bytes of an array.
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\n"
        b"dtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n"
        b"S'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\ntb"
    )
    number = b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'i1'\nI0\nI1\ntRS'\\xff'\ntR"
    content = b"(dS'blobs'\n(dS'conv1_w'\n" + array + b"sS'n\\xe9e'\n" + number + b"ss."
    (tmp_path / "a.pkl").write_bytes(content)
    blobs = load_file(tmp_path / "a.pkl")["blobs"]
    np.testing.assert_array_equal(blobs["conv1_w"], np.float32([1, -2]))
    assert blobs["née"] == -1


# By protocols 0 and 1 Python writes the name of another function.
@pytest.mark.skipif(
    not hasattr(torch.serialization, "safe_globals"), reason="safe_globals came with torch 2.5"
)
@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"protocol0.pkl", "protocol1.pkl"}))
def test_what_is_admitted_deliberately(tmp_path, name):
    values = np.arange(3.0) if name.endswith(".pkl") else torch.arange(3.0)
    args = argparse.Namespace(values=values, kind="x")
    path = write(tmp_path / name, {"args": args}, **FORMATS[name])
    fix = r"it asks for argparse\.Namespace, .*add_safe_globals\(\[argparse\.Namespace\]\)"
    with pytest.raises(CheckpointError, match=fix):
        load_file(path)
    for admitted in (argparse.Namespace, (argparse.Namespace, "argparse.Namespace")):
        with torch.serialization.safe_globals([admitted]):
            loaded = load_file(path)["args"]
        assert type(loaded) is argparse.Namespace
        assert loaded.kind == "x"
        assert type(loaded.values) is type(values)
        assert loaded.values.tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match=fix):
        load_file(path)


# Hostile files


def hostile_contents(sentinel: Path) -> dict:
    """Contents that make a file when they are loaded, and what they are refused for."""
    shell = Call(os.system, f"touch {sentinel}")
    python = f"open({str(sentinel)!r}, 'w').close()"
    nested = np.empty(2, object)
    nested[1] = {"deep": [shell]}
    system = f"asks for {os.system.__module__}.system"
    load_bytes = Call(torch.storage._load_from_bytes, pickle.dumps(shell))
    return {
        "shell": ({"model": {"a": shell}}, system),
        "key": ({shell: 1}, system),
        "eval": (Call(eval, python), r"asks for builtins\.eval"),
        "exec": ([Call(exec, python)], r"asks for builtins\.exec"),
        "import": (Call(__import__, "os"), r"asks for builtins\.__import__"),
        "partial": (functools.partial(eval, python), r"asks for functools\.partial"),
        "torch": (load_bytes, r"asks for torch\.storage\._load_from_bytes"),
        # torch admits no arrays at all.
        "array": ({"model": nested}, "holds an array of dtype 'O8'|asks for numpy"),
    }


@each_format
@pytest.mark.parametrize(
    "attack", ["shell", "key", "eval", "exec", "import", "partial", "torch", "array"]
)
def test_nothing_of_a_file_is_run(tmp_path, name, attack):
    sentinel = tmp_path / "sentinel"
    content, reason = hostile_contents(sentinel)[attack]
    path = write(tmp_path / name, content, **FORMATS[name])
    with pytest.raises(
        CheckpointError, match=f"'{path}' is refused; no code in it was executed: .*({reason})"
    ):
        load_file(path)
    assert not sentinel.exists()


@pytest.mark.parametrize("attack", ["shell", "key", "eval", "exec", "array"])
def test_these_files_are_hostile_indeed(tmp_path, attack):
    sentinel = tmp_path / "sentinel"
    content, _ = hostile_contents(sentinel)[attack]
    pickle.loads(pickle.dumps(content))
    assert sentinel.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"(S'touch SENTINEL'\nios\nsystem\n.",  # INST
        b"(cos\nsystem\nS'touch SENTINEL'\no.",  # OBJ
        b"\x80\x02cos\nsystem\nX\x0e\x00\x00\x00touch SENTINEL\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0etouch SENTINEL\x85R.",  # STACK_GLOBAL
        # Through the attributes of what is admitted.
        b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
        b"\x80\x04\x8c\x0bcollections\x8c\x1bOrderedDict.__subclasses__\x93.",
        b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x15_reconstruct.__call__\x93.",
        b"\x80\x02\x82\x01.",  # EXT1
        b"cos\nsystem\x1b[2J\n.",  # a name that would clear the terminal
    ],
)
def test_hand_written_programs(tmp_path, monkeypatch, program):
    monkeypatch.chdir(tmp_path)
    Path("a.pkl").write_bytes(program)
    with pytest.raises(CheckpointError, match="'a.pkl'") as error:
        load_file("a.pkl")
    assert not Path("SENTINEL").exists()
    assert str(error.value).isprintable()


def forged(*, dtype=("f8",), dtype_state=None, shape=(1,), data=b"x" * 8, kind=np.ndarray):
    dtype = Call(np.dtype, *dtype, False, True, state=dtype_state)
    return Call(_reconstruct, kind, (0,), b"b", state=(1, shape, dtype, False, data))


RECORD = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # numpy would take the bytes for the address of an object.
        (forged(dtype=("O8",), dtype_state=(3, "|", None, None, None, -1, -1, 0)), "dtype 'O8'"),
        (forged(dtype=("V8",), dtype_state=RECORD), "dtype 'V8'"),
        (forged(dtype=("f8",), dtype_state=RECORD), "dtype 'O8'|records"),
        (forged(dtype=("U2",)), "dtype 'U2', not of numbers"),
        (np.array([None, {}]), "dtype 'O8', not of numbers"),
        (forged(data=[None]), "an array of objects"),
        (forged(shape=(2,)), r"shape \(2,\) and dtype float64 with 8 bytes"),
        (forged(shape=(2**62, 4), data=b""), "with 0 bytes"),
        (forged(shape=(-1,)), r"shape \(-1,\)"),
        (forged(kind=np.matrix), r"numpy(\.matrixlib\.defmatrix)?\.matrix"),
        (Call(_reconstruct, np.ndarray, (0,), b"b"), "an array without content"),
        (Call(np.ndarray, (2**40,)), "a call of numpy.ndarray"),
        (Call(scalar, np.dtype("f8"), b"x"), "with 1 bytes"),
        (np.ndarray, "a function or class in place of a value"),
        (collections.OrderedDict, "a function or class in place of a value"),
        (np.dtype("f4"), None),
    ],
)
def test_forged_arrays(tmp_path, content, message):
    path = write(tmp_path / "a.pkl", {"a": content})
    if message is None:
        assert load_file(path) == {"a": content}
        return
    with pytest.raises(CheckpointError, match=message):
        load_file(path)


def test_attributes_of_containers_are_not_taken_over(tmp_path):
    # BUILD of an OrderedDict sets attributes, which would shadow its methods.
    program = b"ccollections\nOrderedDict\n)R(S'items'\nS'a'\nS'keys'\nS'b'\ndb."
    (tmp_path / "a.pkl").write_bytes(program)
    assert list(load_file(tmp_path / "a.pkl").items()) == []


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_classes_of_the_reader_cannot_be_changed(tmp_path, name):
    # BUILD of a class with a pair as its state sets attributes of it, for the whole process.
    maker = MAKERS[name]
    before = dict(vars(maker))
    module, _, attribute = name.rpartition(".")
    program = f"c{module}\n{attribute}\n(N(dS'__new__'\nI1\nsS'finish'\nI1\nstb.".encode()
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(CheckpointError, match="'.*a.pkl' (cannot be read|is refused)"):
        load_file(tmp_path / "a.pkl")
    assert dict(vars(maker)) == before


@pytest.mark.parametrize("content", [b"]" * 100_000 + b"a" * 99_999, b"}\x94\x8c\x01ah\x00s"])
def test_deep_cyclic_and_shared_containers(tmp_path, content):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + content + b".")
    if content.startswith(b"]"):
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            load_file(tmp_path / "a.pkl")
    else:
        loaded = load_file(tmp_path / "a.pkl")
        assert loaded["a"] is loaded
        # Of 60 levels: 2**60 values for whoever follows every path.
        (tmp_path / "a.pkl").write_bytes(b"\x80\x04}\x8c\x01aK\x01\x85" + b"2\x86" * 60 + b"s.")
        value = load_file(tmp_path / "a.pkl")["a"]
        assert value[0] is value[1]


# Damaged files, and what is no checkpoint


class WholeFiles(dict):
    """Name -> the bytes of a checkpoint of this format."""

    __repr__ = object.__repr__  # hypothesis would print them


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory) -> WholeFiles:
    folder = tmp_path_factory.mktemp("whole")
    arrays = {"model": {"a": np.arange(6.0), "b": np.ones((2, 2), np.float32)}, "__author__": "me"}
    for name, options in FORMATS.items():
        write(folder / name, arrays if name.endswith(".pkl") else weights(), **options)
    save_file(weights()["model"], folder / "a.safetensors", {"text": "x"})
    return WholeFiles({path.name: path.read_bytes() for path in folder.iterdir()})


@pytest.mark.parametrize("name", [*FORMATS, "a.safetensors"])
@settings(max_examples=60)
@given(data=st.data())
def test_truncated_files(whole_files, tmp_path_factory, name, data):
    content = whole_files[name]
    path = tmp_path_factory.getbasetemp() / f"truncated_{name}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=r"(copy or download it again|name it .*)$") as error:
        load_file(path)
    assert str(error.value).startswith(f"'{path}'")
    assert error.value.__suppress_context__ or error.value.__context__ is None  # no traceback


def test_a_tensor_marked_as_a_folder(whole_files, tmp_path):
    """Torch would leave it as memory happens to be."""
    content = bytearray(whole_files["zip.pth"])
    entry = content.rfind(b"data/1")  # in the archive's directory; attributes and offset go before
    name_start = content.rfind(b"PK\x01\x02", 0, entry) + 46
    content[name_start - 8] |= 0x10
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"data/1 is a folder.*download it again"):
        load_file(path)


@settings(max_examples=100)
@given(data=st.data())
def test_flipped_bits(whole_files, tmp_path_factory, data):
    content = bytearray(whole_files["zip.pth"])
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "flipped.pth"
    path.write_bytes(content)
    whole = torch.load(io.BytesIO(whole_files["zip.pth"]))
    try:
        loaded = load_file(path)
    except CheckpointError:
        return
    assert_equal(loaded, whole)  # what was flipped does not matter


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: copy or download it again"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body>", "is a web page, not a checkpoint"),
        (b"\xef\xbb\xbf<html>", "is a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "run `git lfs pull`"),
        (bytes(5000), "begins with zeros only"),
        (b'{"message": "Not Found"}', "no checkpoint: copy or download it again"),
        (b"\x00\xff" * 300, "no checkpoint: copy or download it again"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, suffix, content, message):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"'{path}' .*{message}"):
        load_file(path)


def test_wrong_suffixes(tmp_path):
    of_torch = write(tmp_path / "a.pth", weights())
    for suffix in (".pkl", ".safetensors"):
        wrong = of_torch.with_suffix(suffix)
        wrong.write_bytes(of_torch.read_bytes())
        with pytest.raises(CheckpointError, match="looks like a file of torch.save: name it .pth"):
            load_file(wrong)
    tensors = save_file({"a": torch.zeros(2)}, tmp_path / "b.safetensors")
    wrong = tensors.rename(tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="name it .safetensors"):
        load_file(wrong)
    write(tmp_path / "c.pkl", {"a": 1}).rename(tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match=r"looks like a pickle: name it .pth or .pkl"):
        load_file(tmp_path / "c.safetensors")


def test_other_kinds_of_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint at '.*nowhere\.pth'"):
        load_file(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint at"):
        load_file(tmp_path)
    with pytest.raises(CheckpointError, match=r"contains a list, not a dict of weights"):
        load_file(write(tmp_path / "list.pth", [torch.zeros(2)]))
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="is a TorchScript program, not a checkpoint"):
        load_file(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "a.pth.tar", "w") as archive:
        archive.add(tmp_path / "list.pth", "list.pth")
    with pytest.raises(CheckpointError, match="is a tar archive"):
        load_file(tmp_path / "a.pth.tar")


def test_numbers_of_numpy_in_files_of_torch(tmp_path):
    """Which torch does not take either; the message names what it would have to be given."""
    path = write(tmp_path / "a.pth", {"best": np.float64(0.5)})
    with pytest.raises(CheckpointError, match=r"asks for numpy\._?core\.multiarray\.scalar"):
        load_file(path)


def test_without_safetensors(tmp_path, monkeypatch):
    path = save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install 'atss_d2\[export\]'"):
        load_file(path)
