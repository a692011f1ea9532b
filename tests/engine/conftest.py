"""Training runs of the toy detector that several tests look at."""

import json
from collections.abc import Callable

import pytest

from tests import toy


@pytest.fixture(scope="module")
def toy_data(tmp_path_factory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_DATA", "")  # restored afterwards
        toy.write_dataset(tmp_path_factory.mktemp("toy_data"))
        yield


@pytest.fixture(scope="module")
def whole_runs(toy_data, tmp_path_factory) -> Callable[..., toy.Run]:
    """``whole_runs(**overrides)`` is an uninterrupted run; not to be changed."""
    runs: dict[str, toy.Run] = {}

    def get(**overrides) -> toy.Run:
        key = json.dumps(overrides)
        if key not in runs:
            runs[key] = toy.Run(tmp_path_factory.mktemp("whole"), **overrides).train()
        return runs[key]

    return get
