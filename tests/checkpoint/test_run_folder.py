"""Which checkpoint of a folder is resumed from, and what a new run does to an earlier one's."""

import logging
import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from atss_d2.checkpoint import CheckpointError, SafeCheckpointer, find_checkpoint, load_file
from atss_d2.checkpoint.earlier_run import remove_leftovers, set_aside
from atss_d2.checkpoint.finite import nonfinite_tensors
from atss_d2.checkpoint.run_folder import newest_checkpoint


class Trainer:
    """What the checkpointer saves of a training."""

    def __init__(self, model: nn.Module) -> None:
        self.iteration = 0
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def state_dict(self) -> dict:
        return {"iteration": self.iteration, "optimizer": self.optimizer.state_dict()}


class Run:
    """A folder with checkpoints of iterations 3, 7 and 11, and the final one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = nn.Linear(3, 2)
        self.trainer = Trainer(self.model)
        self.checkpointer = SafeCheckpointer(self.model, str(folder), trainer=self.trainer)
        for iteration in (3, 7, 11):
            self.model(torch.ones(1, 3)).sum().backward()
            self.trainer.optimizer.step()
            self.save(f"model_{iteration:07d}", iteration)

    def save(self, name: str, iteration: int) -> bool:
        self.trainer.iteration = iteration
        return self.checkpointer.save(name, iteration=iteration)

    @property
    def newest(self) -> Path:
        return self.folder / "model_0000011.pth"

    @property
    def pointer(self) -> Path:
        return self.folder / "last_checkpoint"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return Run(tmp_path_factory.mktemp("original")).folder


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


def test_the_newest_is_found_with_and_without_a_pointer(run, caplog):
    assert newest_checkpoint(run.folder) == (run.newest, 11)
    run.pointer.unlink()
    assert find_checkpoint(run.folder) == run.newest
    run.save("model_final", 11)
    assert find_checkpoint(run.folder) == run.folder / "model_final.pth"
    run.save("model_0000015", 15)  # of the prolonged run
    assert newest_checkpoint(run.folder).iteration == 15
    assert not caplog.records
    assert find_checkpoint(run.folder / "nowhere") is None


POINTERS = {
    "empty": (b"", "is empty"),
    "random": (bytes(range(128, 256)), "holds no name"),
    "zeros": (bytes(17), "is not there"),
    "a lost file": (b"model_0000015.pth", "names 'model_0000015.pth', which is not there"),
    "too long": (b"x" * 5000, "is not there"),
    "older": (b"model_0000003.pth", "is newer and is taken"),
}


@pytest.mark.parametrize(("content", "message"), POINTERS.values(), ids=POINTERS)
def test_a_pointer_is_only_a_hint(run, caplog, content, message):
    run.pointer.write_bytes(content)
    assert find_checkpoint(run.folder) == run.newest
    (record,) = caplog.records
    assert str(run.pointer) in record.getMessage()
    assert str(run.newest) in record.getMessage()
    assert message in record.getMessage()


def test_a_folder_in_place_of_the_pointer(run, caplog):
    run.pointer.unlink()
    run.pointer.mkdir()
    assert find_checkpoint(run.folder) == run.newest
    assert f"'{run.pointer}' is a folder: taking '{run.newest}'" in caplog.text
    run.save("model_0000015", 15)
    assert run.pointer.read_text() == "model_0000015.pth"


def flip_a_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 4
    path.write_bytes(content)


def position_of_weights(path: Path) -> int:
    return path.read_bytes().index(load_file(path)["model"]["weight"].numpy().tobytes())


def with_value(value: float, *keys):
    def damage(path: Path) -> None:
        content = node = load_file(path)
        for key in keys:
            node = node[key]
        node.view(-1)[0] = value
        torch.save(content, path)

    return damage


def without(*keys: str):
    def damage(path: Path) -> None:
        content = node = load_file(path)
        for key in keys[:-1]:
            node = node[key]
        del node[keys[-1]]
        torch.save(content, path)

    return damage


MOMENTUM = ("trainer", "optimizer", "state", 0, "momentum_buffer")
DAMAGES = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cannot be read"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[:1500]), "cannot be read"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "zeros only"),
    "zeros at the end": (
        lambda path: path.write_bytes(path.read_bytes()[:2000] + bytes(path.stat().st_size - 2000)),
        "cannot be read",
    ),
    "random": (lambda path: path.write_bytes(random.Random(0).randbytes(999)), "cannot be read"),
    "a bit of the pickle": (lambda path: flip_a_bit(path, 500), "checksum"),
    "a bit of a weight": (lambda path: flip_a_bit(path, position_of_weights(path)), "checksum"),
    "only weights": (without("trainer"), "not the state of a training"),
    "flat weights": (
        lambda path: torch.save(load_file(path)["model"], path),
        "not the state of a training",
    ),
    "no optimizer": (without("trainer", "optimizer"), "lacks the state of the optimizer"),
    "a NaN": (with_value(float("nan"), "model", "weight"), "NaN or infinity in model.weight"),
    "an infinity": (with_value(float("-inf"), *MOMENTUM), f"in {'.'.join(map(str, MOMENTUM))}"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_the_next_older_one_is_taken(run, caplog, damage, message):
    damage(run.newest)
    older = run.folder / "model_0000007.pth"
    assert find_checkpoint(run.folder) == older
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for text in (f"'{run.newest}'", message, f"Taking '{older}' instead"):
        assert text in record.getMessage()


def test_a_flipped_bit_is_found_or_does_no_harm(original, tmp_path):
    content = (original / "model_0000011.pth").read_bytes()
    expected = load_file(original / "model_0000011.pth")
    path, rng, num_found = tmp_path / "model_0000011.pth", random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            find_checkpoint(tmp_path)
        except CheckpointError:
            num_found += 1
        else:  # in the padding
            loaded = load_file(path)
            assert loaded["trainer"]["iteration"] == expected["trainer"]["iteration"]
            torch.testing.assert_close(loaded["model"], expected["model"], rtol=0, atol=0)
    assert num_found > 20  # the rest is padding, as the file is small


def test_if_none_is_whole_nothing_starts_silently(run):
    paths = sorted(run.folder.glob("*.pth"))
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in it is whole.*--overwrite") as info:
        find_checkpoint(run.folder)
    assert all(str(path) in str(info.value) for path in paths)
    for path in paths:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"names 'model_0000011.pth', which is not there"):
        find_checkpoint(run.folder)


def test_other_files_are_no_candidates(run, caplog):
    for name in ("model_best.pth", "model_best_previous.pth", "R-50.pth", "model_12.pth"):
        torch.save({"model": {}}, run.folder / name)
    assert find_checkpoint(run.folder) == run.newest
    for path in (*run.folder.glob("model_0*.pth"), run.pointer):
        path.unlink()
    assert not caplog.records
    assert find_checkpoint(run.folder) is None
    assert "no checkpoint of a run, only R-50.pth, model_12.pth, model_best.pth" in caplog.text


def test_a_file_of_any_name_that_the_pointer_names(run):
    run.save("mine", 13)
    assert newest_checkpoint(run.folder) == (run.folder / "mine.pth", 13)


# Saving


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["weight", "optimizer"])
def test_numbers_that_are_not_finite_are_never_saved(run, caplog, value, where):
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    parameter = run.model.bias
    momentum = run.trainer.optimizer.state[parameter]["momentum_buffer"]
    with torch.no_grad():
        (parameter if where == "weight" else momentum)[1] = value
    assert run.save("model_0000015", 15) is False
    name = "model.bias" if where == "weight" else "trainer.optimizer.state.1.momentum_buffer"
    assert f"1 tensors hold NaN or infinity ({name})" in caplog.text
    assert caplog.records[-1].levelno == logging.ERROR
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


def test_a_mask_may_be_minus_infinity():
    state = {"model": {"mask": torch.tensor([0.0, -torch.inf]), "w": torch.ones(1)}}
    assert nonfinite_tensors(state, parameters={"w"}) == []
    assert nonfinite_tensors(state, parameters={"mask"}) == ["model.mask"]
    state["model"]["mask"][0] = torch.inf
    assert nonfinite_tensors(state, parameters={"w"}) == ["model.mask"]
    assert nonfinite_tensors({"a": [torch.ones(1), (torch.full((1,), torch.nan),)]}) == ["a.1.0"]


def test_a_full_disk_ends_in_one_sentence(run, monkeypatch):
    before = {path: path.read_bytes() for path in run.folder.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write '.*15.pth' \(No space left"):
        run.save("model_0000015", 15)
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


# A new run in the folder of an earlier one


def test_only_our_leftovers_are_removed(tmp_path):
    hexadecimal = "0123456789abcdef" * 2
    ours = [f".model_0000003.{hexadecimal}.pth", f".last_checkpoint.{hexadecimal}"]
    others = [f".mine.{hexadecimal}.pth", ".model_0000003.pth", ".lock", f".model_a.{'g' * 32}.pth"]
    for name in (*ours, *others):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_files_of_an_earlier_run_are_set_aside(original, tmp_path):
    folder = shutil.copytree(original, tmp_path / "run")
    for name in ("metrics.json", "events.out.tfevents.1.x", "log.txt", "config.yaml", "mine.txt"):
        (folder / name).write_text(name)
    (folder / "inference").mkdir()
    assert set_aside(folder) == folder / "previous_1"
    kept = {"log.txt", "config.yaml", "mine.txt", "previous_1"}
    assert {path.name for path in folder.iterdir()} == kept
    assert {path.name for path in (folder / "previous_1").iterdir()} == {
        *("model_0000003.pth", "model_0000007.pth", "model_0000011.pth", "last_checkpoint"),
        *("metrics.json", "events.out.tfevents.1.x", "config.yaml", "inference"),
    }
    assert set_aside(folder) is None
    (folder / "metrics.json").touch()
    assert set_aside(folder) == folder / "previous_2"
