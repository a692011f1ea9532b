"""Every config file is run once for all tests of configs."""

import pytest
from omegaconf import DictConfig

from atss_d2 import get_config, list_configs


@pytest.fixture(scope="session")
def configs() -> dict[str, DictConfig]:
    """All LazyConfigs by name; not to be changed."""
    return {name: get_config(name) for name in list_configs()}
