"""A tiny stand-in for a wheel of the package index."""

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from atss_d2.data.embedded.download import Wheel

_METADATA = "Metadata-Version: 2.1\nName: tinydata\nVersion: 1.0\n"


class FakeWheel:
    """A wheel on disk, its pin, and a download that counts its calls."""

    def __init__(self, path: Path, requirement: str) -> None:
        self.path = path
        content = path.read_bytes()
        self.pin = Wheel(requirement, hashlib.sha256(content).hexdigest(), len(content))
        self.num_downloads = 0

    def download(self, requirement: str, folder: Path) -> None:
        assert requirement == self.pin.requirement
        self.num_downloads += 1
        shutil.copy(self.path, folder)


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[[dict[str, bytes]], FakeWheel]:
    """``make_wheel({member: content})`` builds an installable wheel `tinydata==1.0`."""

    def make(members: dict[str, bytes]) -> FakeWheel:
        folder = tmp_path / "index"
        folder.mkdir()
        path = folder / "tinydata-1.0-py3-none-any.whl"
        info = "tinydata-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            archive.writestr(f"{info}/METADATA", _METADATA)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        return FakeWheel(path, "tinydata==1.0")

    return make
