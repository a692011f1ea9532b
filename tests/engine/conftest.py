"""Training runs of the toy detector that several tests look at."""

import json
from collections.abc import Callable

import pytest

from tests import toy


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory) -> Callable[..., toy.Run]:
    """``whole_runs(**overrides)`` is an uninterrupted run on toy_data; not to be changed."""
    runs: dict[str, toy.Run] = {}

    def get(**overrides) -> toy.Run:
        key = json.dumps(overrides)
        if key not in runs:
            runs[key] = toy.Run(tmp_path_factory.mktemp("whole"), **overrides).train()
        return runs[key]

    return get
