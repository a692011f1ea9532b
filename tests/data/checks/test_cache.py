"""What was seen of an unchanged file is not looked at again; anything else is."""

import os

import numpy as np
import pytest
from PIL import Image

from atss_d2.data.checks import probing
from atss_d2.data.checks.cache import cache_folder
from atss_d2.data.checks.dataset import check_coco_file
from tests.data.cases import Sample


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three images, and a cache of their own."""
    monkeypatch.setenv("ATSS_D2_CACHE", str(tmp_path / "cache"))
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.fromarray(np.full((20 + i, 30, 3), i, np.uint8)).save(images / f"{i}.png")
    return images


@pytest.fixture
def looked_at(monkeypatch):
    """Paths that are looked at, not remembered."""
    paths, probe = [], probing.probe

    def record(path, **options):
        paths.append(os.path.basename(path))
        return probe(path, **options)

    monkeypatch.setattr(probing, "probe", record)
    return paths


def look(folder, **options):
    return probing.probe_files([str(path) for path in sorted(folder.iterdir())], **options)


def test_the_second_look_reads_nothing(folder, looked_at):
    first = look(folder)
    assert sorted(looked_at) == ["0.png", "1.png", "2.png"]
    looked_at.clear()
    assert look(folder) == first
    assert looked_at == []
    assert look(folder, cache=False) == first
    assert len(looked_at) == 3


def test_a_changed_file_is_read_again_even_with_the_time_of_before(folder, looked_at):
    look(folder)
    looked_at.clear()
    path = folder / "1.png"
    data, times = bytearray(path.read_bytes()), os.stat(path)
    data[-20] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    look(folder)
    assert looked_at == ["1.png"]


def test_full_is_more_than_what_was_remembered(folder, looked_at):
    look(folder)
    looked_at.clear()
    assert all(x.is_decoded for x in look(folder, full=True))
    assert len(looked_at) == 3
    looked_at.clear()
    look(folder)  # but not less
    assert looked_at == []


@pytest.mark.parametrize("damage", [lambda x: b"", lambda x: x[:200], lambda x: b"PK" + bytes(99)])
def test_a_damaged_cache_is_ignored_and_replaced(folder, looked_at, damage):
    first = look(folder)
    (file,) = cache_folder().glob("images-*")
    file.write_bytes(damage(file.read_bytes()))
    looked_at.clear()
    assert look(folder) == first
    assert len(looked_at) == 3
    looked_at.clear()
    assert look(folder) == first
    assert looked_at == []


def test_two_parts_of_a_folder_are_both_remembered(folder, looked_at):
    paths = sorted(str(path) for path in folder.iterdir())
    for part in (paths[:2], paths[2:], paths):
        probing.probe_files(part, root=str(folder))
    assert len(looked_at) == 3


def test_without_a_place_for_it_nothing_is_remembered(folder, looked_at, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    for value in ("", "relative", str(tmp_path / "file")):
        monkeypatch.setenv("ATSS_D2_CACHE", value)
        assert cache_folder() is None
        looked_at.clear()
        look(folder)
        assert len(looked_at) == 3
    monkeypatch.delenv("ATSS_D2_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "atss_d2" / "checks"


def test_findings_of_a_json_are_remembered_until_it_changes(folder, tmp_path, monkeypatch):
    sample = Sample(tmp_path / "sample")
    sample.content["train"]["annotations"][0]["bbox"] = [1, 2, 3]
    sample.write()
    path, root = str(sample.json_file("train")), str(tmp_path / "sample" / "train")
    first = check_coco_file(path, root)
    assert [x.code for x in first.report.findings] == ["box_values"]
    with monkeypatch.context() as patch:
        patch.setattr("atss_d2.data.checks.dataset.read_json", None)  # would raise
        assert check_coco_file(path, root) == first
    sample.json_file("train").write_text("{}")
    assert [x.code for x in check_coco_file(path, root).report.findings] == ["json"]
    assert len(list(cache_folder().glob("result-*"))) == 1
