"""A prefix of somebody's own, as cloud storage has."""

from pathlib import Path

import pytest
from detectron2.utils.file_io import PathHandler, PathManager


class Handler(PathHandler):
    """Finds files in a folder; whether one is there it cannot tell."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def _get_supported_prefixes(self) -> list[str]:
        return ["test_weights://"]

    def _get_local_path(self, path: str, **kwargs) -> str:
        return str(self.folder / path.removeprefix("test_weights://"))


@pytest.fixture
def handler(tmp_path):
    PathManager.register_handler(Handler(tmp_path), allow_override=True)
    yield "test_weights://"
    PathManager._path_handlers.pop("test_weights://")
