import multiprocessing

import pytest
from torch.utils.data import DataLoader

from atss_d2.data.workers import with_default_workers


@pytest.fixture
def in_a_launched_process():
    """Python's default in processes that were spawned, such as those of Detectron2's launch."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("in_a_launched_process")
def test_workers_are_started_as_those_of_a_single_process():
    loader = with_default_workers(DataLoader(range(4), num_workers=1))
    assert (
        loader.multiprocessing_context.get_start_method()
        == (multiprocessing.get_all_start_methods()[0])
    )
    assert list(map(int, loader)) == [0, 1, 2, 3]


def test_a_chosen_way_is_kept():
    context = multiprocessing.get_context("spawn")
    loader = DataLoader(range(4), num_workers=1, multiprocessing_context=context)
    assert with_default_workers(loader).multiprocessing_context is context
    with_default_workers(DataLoader(range(4)))  # has no processes
