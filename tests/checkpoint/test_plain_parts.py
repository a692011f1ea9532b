"""Weights out of files that hold objects as well; whatever a file asks for, nothing is called."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.checkpoint import CheckpointError, load_file
from atss_d2.checkpoint.numpy_pickle import NotPlainError
from atss_d2.checkpoint.plain_parts import read_plain_parts
from atss_d2.checkpoint.plain_values import LeftOut
from tests.checkpoint.test_loading import FORMATS, Call, hostile_contents, write
from tests.foreign_checkpoints import mmengine

KINDS = ("zip-2", "legacy-2", "zip-4", "legacy-5")  # format and protocol of pickle


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture(scope="module")
def training_checkpoints(tmp_path_factory) -> Path:
    """A checkpoint as mmengine's runner writes it."""
    folder = tmp_path_factory.mktemp("mmengine")
    model, optimizer = trained()
    state = model.state_dict()
    state["tied"] = state["0.weight"]
    state["view"] = state["0.weight"][1:3].transpose(0, 1)
    with mmengine() as module:
        buffer = module.HistoryBuffer
        logs = OrderedDict((f"train/{key}", buffer([1.0, 2.0])) for key in ("loss", "lr"))
        info = {"iter": 7, "best": np.float64(0.5), "levels": module.Level([1, 2])}
        schedulers = [{"settings": module.Settings(a=1), "last_step": 3}, {"last_step": 4}]
        content = {
            "meta": {"epoch": 12, "cfg": "model = dict()", "classes": ("a", "b"), "set": {1, 2}},
            "state_dict": state,
            "message_hub": {"log_scalars": logs, "runtime_info": info},
            "param_schedulers": schedulers,
            "optimizer": optimizer.state_dict(),
            "parameter": torch.nn.Parameter(torch.arange(3.0)),
            "half": torch.arange(3).to(torch.bfloat16),
            "mask": torch.tensor([True, False, True]),
            "empty": torch.zeros(0, 4),
            "number": torch.tensor(3),
        }
        for kind in KINDS:
            version, protocol = kind.split("-")
            options = {"_use_new_zipfile_serialization": version == "zip"}
            path = folder / f"{kind}.pth"
            torch.save(content, path, pickle_protocol=int(protocol), **options)
    assert "mmengine" not in sys.modules
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_training_checkpoints_of_mmdetection(training_checkpoints, kind, caplog):
    training_checkpoint = training_checkpoints / f"{kind}.pth"
    with pytest.raises(
        CheckpointError, match="it asks for .*with --weights-only-parts|Unsupported"
    ):
        load_file(training_checkpoint)
    loaded = load_file(training_checkpoint, weights_only_parts=True)
    assert loaded["meta"] == {
        "epoch": 12,
        "cfg": "model = dict()",
        "classes": ("a", "b"),
        "set": {1, 2},
    }
    assert loaded["message_hub"] == {
        "log_scalars": {},
        "runtime_info": {"iter": 7, "best": np.float64(0.5)},
    }
    assert loaded["param_schedulers"] == [{"last_step": 3}, {"last_step": 4}]
    state = loaded["state_dict"]
    model, optimizer = trained()
    expected = model.state_dict()
    assert list(state) == [*expected, "tied", "view"]
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    assert isinstance(state, OrderedDict)
    assert state._metadata == expected._metadata
    assert state["tied"].data_ptr() == state["0.weight"].data_ptr()
    torch.testing.assert_close(state["view"], expected["0.weight"][1:3].transpose(0, 1))
    optimizer.load_state_dict(loaded["optimizer"])
    torch.testing.assert_close(loaded["parameter"], torch.arange(3.0))
    torch.testing.assert_close(loaded["half"], torch.arange(3).to(torch.bfloat16))
    torch.testing.assert_close(loaded["mask"], torch.tensor([True, False, True]))
    assert loaded["empty"].shape == (0, 4)
    assert loaded["number"].item() == 3
    message = caplog.records[-1].getMessage()
    name = "mmengine.logging.history_buffer"
    assert f"2 x {name}.HistoryBuffer in 'message_hub'" in message
    assert f"1 x {name}.Level in 'message_hub'" in message
    assert f"1 x {name}.Settings in 'param_schedulers'" in message


def test_plain_files_are_read_as_ever(tmp_path, caplog):
    path = tmp_path / "a.pth"
    torch.save({"model": {"a": torch.ones(2)}}, path)
    assert load_file(path, weights_only_parts=True)["model"]["a"].tolist() == [1, 1]
    assert not caplog.records


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickles_of_arrays_beside_an_object(tmp_path, protocol):
    content = {"model": {"a": np.arange(6.0).reshape(2, 3)}, "config": Call(print, "ran")}
    content["objects"] = np.array([None, {}])
    content["record"] = np.zeros(2, dtype=[("a", "f4")])
    content["dtype"] = np.dtype("f4")
    path = write(tmp_path / "a.pkl", content, protocol=protocol)
    loaded = load_file(path, weights_only_parts=True)
    assert list(loaded) == ["model"]
    np.testing.assert_array_equal(loaded["model"]["a"], content["model"]["a"])


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("content", ["model", "nested"])
def test_objects_that_hold_the_weights(tmp_path, capsys, is_zip, content):
    model = torch.nn.Conv2d(1, 1, 1)
    torch.save(
        model if content == "model" else {"model": model, "epoch": 3},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=is_zip,
    )
    with pytest.raises(CheckpointError, match=r"no weights outside of its objects \(.*Conv2d"):
        load_file(tmp_path / "a.pth", weights_only_parts=True)


# Hostile files


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "attack", ["shell", "key", "eval", "exec", "import", "partial", "torch", "array"]
)
@pytest.mark.parametrize("with_weights", [True, False])
def test_nothing_of_a_file_is_run(tmp_path, name, attack, with_weights):
    sentinel = tmp_path / "sentinel"
    content, _ = hostile_contents(sentinel)[attack]
    if with_weights:
        values = np.ones(2) if name.endswith(".pkl") else torch.ones(2)
        content = {"model": {"a": values}, "rest": [content]}
    path = write(tmp_path / name, content, **FORMATS[name])
    if with_weights:
        loaded = load_file(path, weights_only_parts=True)
        assert loaded["model"]["a"].tolist() == [1, 1]
        assert loaded.get("rest", [{}]) in ([{}], [{"model": {}}])
    else:
        with pytest.raises(CheckpointError, match="no weights outside of its objects"):
            load_file(path, weights_only_parts=True)
    assert not sentinel.exists()


def archive(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **options):
    """A zip file of torch around a program of one's own."""
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as file:
        file.writestr("a/data.pkl", program)
        file.writestr("a/version", "3\n")
        file.writestr("a/byteorder", "little")
        for key, data in (storages or {}).items():
            file.writestr(f"a/data/{key}", data)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key="0", count=4, kind="ctorch\nFloatStorage\n") -> bytes:
    return b"(" + text("storage") + kind.encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(size=(4,), stride=(1,), offset=0, of=None) -> bytes:
    arguments = (of or storage()) + number(offset) + numbers(size) + numbers(stride)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89}tR"


FOUR = {"0": struct.pack("<4f", 1, 2, 3, 4)}


def test_tensors_by_hand(tmp_path):
    program = b"\x80\x02}" + text("a") + tensor((2, 1), (2, 7), 1) + b"s."
    content, left_out, num_tensors = read_plain_parts(archive(tmp_path / "a.pth", program, FOUR))
    assert content["a"].tolist() == [[2], [4]]
    assert (left_out, num_tensors) == ({}, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (tensor((5,)), "larger than its storage"),
        (tensor((2,), (4,)), "larger than its storage"),
        (tensor((1,), (1,), 4), "larger than its storage"),
        (tensor((2**40,), (0,)), "larger than its storage"),  # grows when it is copied
        (tensor((2**61, 8), (0, 0)), "larger than its storage"),
        (tensor((4,), (1,), -1), "not made of numbers"),
        (tensor((-4,), (1,)), "not made of numbers"),
        (tensor((4,), (-1,)), "not made of numbers"),
        (tensor((4,), (2**70,)), "not made of numbers"),
        (tensor((4,), ()), "without storage or shape"),
        (tensor((1,) * 70, (1,) * 70), "without storage or shape"),
        (tensor(of=b"]"), "without storage or shape"),
        (tensor(of=storage(count=5)), "another size in the file"),
        (tensor(of=storage(count=2**60)), "larger than the file"),
        (tensor(of=storage(count=-4)), "larger than the file"),
        (tensor(of=storage("1")), "data/1"),
        (tensor(of=storage("../0")), "data/../0"),
        (tensor() + b"0" + tensor(of=storage(kind="ctorch\nByteStorage\n")), "in two ways"),
        (b"(" + text("module") + text("os") + b"tQ", "not that of a storage"),
        (text("0") + b"Q", "not that of a storage"),
        (b"Pstorage\n", "the opcode PERSID"),
        (b"\x82\x01", "the opcode EXT1"),
        (b"\x97", "the opcode NEXT_BUFFER"),
        (b"]" + text("a") + b"R", "a call of a list"),
        (b"ccollections\nOrderedDict\n]R", "a call with a list"),
        (b"ctorch._utils\n_rebuild_parameter\n(]tR", "a parameter that is not a tensor"),
        (b"N}b", "whose state is set"),
        (b"}]a", "a dict that is appended to"),
        (b"]NNs", "a list whose items are set"),
        (b"}]Ns", "a key that is neither"),
        (b"}" + b")" + b"\x85" * 100_000 + b"Ns", "a key that is neither"),  # hashing overflows
        (b"\x8f(]\x90", "a key that is neither"),
        (b"\x8e" + struct.pack("<Q", 2**60), "ends too early"),
        (b"X" + struct.pack("<I", 2**32 - 1), "ends too early"),
        (b"(N((", "cannot be read"),
        (b"h\x07", "cannot be read"),
        (b"\x93", "cannot be read"),
        (b"]" * 100_000 + b"a" * 99_999, "cannot be read"),
    ],
)
def test_forged_files(tmp_path, value, message):
    # The object at the beginning makes the file one that torch refuses.
    program = b"\x80\x02}" + text("o") + b"cos\nsystem\n)Rs" + text("a") + value + b"s."
    path = archive(tmp_path / "a.pth", program, FOUR)
    with pytest.raises(CheckpointError, match=message) as error:
        load_file(path, weights_only_parts=True)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "value",
    [
        b"cos\nsystem\n" + text("touch SENTINEL") + b"\x85R",
        b"cos\nsystem\n" + text("touch SENTINEL") + b"\x85\x81",  # NEWOBJ
        b"cos\nsystem\n" + text("touch SENTINEL") + b"\x85}\x92",  # NEWOBJ_EX
        text("os") + text("system") + b"\x93" + text("touch SENTINEL") + b"\x85R",
        b"(" + text("touch SENTINEL") + b"ios\nsystem\n",
        b"(cos\nsystem\n" + text("touch SENTINEL") + b"o",
        # By attributes of what is known, and by what a call would give.
        b"ccollections\nOrderedDict.__class__\n" + text("a") + b"\x85R",
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n)R",
        b"cbuiltins\ngetattr\n" + b"cos\nsystem\n)R" + text("x") + b"\x86R)R",
        # By setting the state of a class, which would change it for everybody.
        b"cbuiltins\nset\n(N}" + text("add") + b"cos\nsystem\nstb",
        b"cnumpy\nndarray\n(N}" + text("finish") + b"cos\nsystem\nstb",
        b"cos\nsystem\n)R}" + text("__class__") + b"cos\nsystem\nsb",
        b"cos\nsystem\n)R(]]e",  # items of an object
        b"cos\nsystem\n)RNNs",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n)}tR",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nPathLike\n)}tR",
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(kind="cos\nsystem\n") + b"K\x00))\x89}tR",
        b"cos\nsystem\n",  # the function itself
    ],
)
def test_objects_are_left_out(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    program = b"\x80\x02}" + text("t") + tensor() + b"s" + text("a") + value + b"s."
    path = archive(tmp_path / "a.pth", program, FOUR)
    before = dict(vars(LeftOut))
    content, left_out, _ = read_plain_parts(path)
    assert list(content) == ["t"]
    assert content["t"].tolist() == [1, 2, 3, 4]
    assert [key for key, _ in left_out] == ["a"]
    assert dict(vars(LeftOut)) == before
    assert not Path("SENTINEL").exists()


def test_attributes_of_containers_are_not_taken_over(tmp_path):
    state = b"}" + text("items") + text("a") + b"s" + text("_metadata") + b"}s"
    program = b"\x80\x02ccollections\nOrderedDict\n)R" + text("t") + tensor() + b"s" + state + b"b."
    content, _, _ = read_plain_parts(archive(tmp_path / "a.pth", program, FOUR))
    assert [key for key, _ in content.items()] == ["t"]
    assert vars(content) == {"_metadata": {}}


def test_shared_and_cyclic_containers(tmp_path):
    # t1 = (t0, t0), t2 = (t1, t1), ...: 2**60 values for whoever follows every path.
    shared = b"cos\nsystem\n" + b"2\x86" * 60
    program = b"\x80\x02}q\x00" + text("t") + tensor() + b"s" + text("many") + shared + b"s"
    program += text("self") + b"h\x00s" + text("list") + b"]q\x01h\x01ah\x00as."
    content, left_out, _ = read_plain_parts(archive(tmp_path / "a.pth", program, FOUR))
    assert set(content) == {"t", "self", "list"}
    assert content["self"] is content
    assert content["list"] == [content["list"], content] or content["list"][1] is content
    assert left_out == {("many", "os.system"): 1}


@pytest.mark.parametrize("name", ["builtins set", "collections OrderedDict", "_codecs encode"])
def test_copies_are_bounded(tmp_path, name):
    """One list, given to a maker of copies again and again: memory of the file's size squared."""
    module, function = name.split()
    count = 2000
    items = {
        "set": b"](" + b"".join(number(i) for i in range(count)) + b"e",
        "OrderedDict": b"](" + b"".join(number(i) + b"N\x86" for i in range(count)) + b"e",
        "encode": text("x" * 10_000),
    }[function]
    call = f"c{module}\n{function}\n".encode() + b"h\x01\x85R"
    program = b"\x80\x02](" + tensor() + items + b"q\x01" + call * 1200 + b"e."
    path = archive(tmp_path / "a.pth", program, FOUR)
    with pytest.raises(pickle.UnpicklingError, match="much larger than the file"):
        read_plain_parts(path)


def test_compressed_files_are_refused(tmp_path):
    program = b"\x80\x02}" + text("o") + b"cos\nsystem\n)Rs" + text("a") + tensor() + b"s."
    path = archive(tmp_path / "a.pth", program, FOUR, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is compressed"):
        load_file(path, weights_only_parts=True)


def legacy(path: Path, content, **changes) -> Path:
    """A file of torch before 1.6 around pickles of one's own; without storages."""
    head = {
        "magic": 0x1950A86A20F9469CFC6C,
        "version": 1001,
        "system": {"little_endian": True},
        "content": content,
        "keys": [],
        **changes,
    }
    path.write_bytes(
        b"".join(x if isinstance(x, bytes) else pickle.dumps(x, 2) for x in head.values())
    )
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": 1}, "not a file of torch.save"),
        ({"version": 3}, "not a file of torch.save"),
        ({"system": {"little_endian": False}}, "big-endian"),
        ({"system": Call(os.system, "touch SENTINEL")}, "big-endian"),
        ({"keys": ["0"]}, "list of storages"),
        ({"keys": Call(os.system, "touch SENTINEL")}, "list of storages"),
        ({"keys": b"\x80\x02" + storage() + b"."}, "in a file without storages"),
        ({"magic": Call(os.system, "touch SENTINEL")}, "not a file of torch.save"),
    ],
)
def test_forged_legacy_files(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    path = legacy(tmp_path / "a.pth", {"a": 1}, **changes)
    with pytest.raises(pickle.UnpicklingError, match=message):
        read_plain_parts(path)
    assert not Path("SENTINEL").exists()


@pytest.mark.parametrize(
    ("kind", "count", "message"),
    [("Float", 2**40, "larger than the file"), ("Other", 4, "type 'torch.OtherStorage'")],
)
def test_legacy_storages_that_cannot_be_read(tmp_path, kind, count, message):
    pid = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text("0") + text("cpu")
    program = b"\x80\x02" + pid + number(count) + b"NtQ."
    with pytest.raises((pickle.UnpicklingError, NotPlainError), match=message):
        read_plain_parts(legacy(tmp_path / "a.pth", program))


class Object:
    """Of a class that torch does not admit."""


def file_bytes(is_zip: bool) -> bytes:
    buffer = io.BytesIO()
    content = {"model": {"a": torch.arange(6.0), "b": torch.ones(2, 2)}, "rest": Object()}
    torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


@pytest.mark.parametrize("is_zip", [True, False])
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_files_give_sentences(tmp_path_factory, is_zip, data):
    content = bytearray(file_bytes(is_zip))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            index = data.draw(st.integers(0, len(content) - 1))
            content[index] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(content)
    message = f"'{path}'"
    try:
        assert isinstance(load_file(path, weights_only_parts=True), dict)
    except CheckpointError as error:
        message = str(error)
    assert message.startswith(f"'{path}'")
    assert message.isprintable()


@settings(max_examples=300)
@given(data=st.binary(max_size=60))
def test_any_program(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.pth"
    archive(path, b"\x80\x02" + data + b".", FOUR)
    try:
        read_plain_parts(path)
    except (MemoryError, SystemExit, KeyboardInterrupt):
        raise
    except Exception:  # of any kind, which load_file makes a sentence of
        pass
