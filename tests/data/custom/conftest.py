import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from atss_d2.data.custom.checked import Checked
from atss_d2.data.custom.checking import check
from atss_d2.data.custom.reading import read_source
from tests.drawn_set import draw_set


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> tuple[dict, Path]:
    """Eight drawn images: the content of their JSON and their folder. Not to be changed."""
    folder = tmp_path_factory.mktemp("drawn") / "images"
    return draw_set(folder, 8), folder


@pytest.fixture
def check_changed(drawn, tmp_path) -> Callable[..., Checked]:
    """``check_changed(change)``: checks the drawn set after ``change(content)``."""

    def check_changed(change: Callable[[dict], None] = lambda content: None) -> Checked:
        content, images = copy.deepcopy(drawn[0]), drawn[1]
        change(content)
        (tmp_path / "a.json").write_text(json.dumps(content))
        return check(read_source([str(tmp_path / "a.json"), str(images)]))

    return check_changed
