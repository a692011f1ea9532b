"""What holds for every test: one thread, a fixed seed, no window, our warnings only."""

import os
import random

# Before numpy and torch start their threads; commands that tests run inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["ATSS_D2_CACHE"] = ""  # tests do not use what was remembered of files

import hypothesis
import numpy as np
import pytest
import torch

from atss_d2.warning_filters import filter_third_party_warnings

torch.set_num_threads(1)
# The first backward pass starts autograd's threads for the devices that torch knows. Fake tensors
# of a GPU add a device: were they first, processes that tests fork could not train any more.
torch.ones(1, requires_grad=True).sum().backward()

# A busy machine makes any one example slow.
hypothesis.settings.register_profile("atss_d2", deadline=None)
hypothesis.settings.load_profile("atss_d2")


@pytest.fixture(scope="module")
def toy_data(tmp_path_factory):
    """The folder of the toy's data set, drawn and registered."""
    from tests import toy

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_DATA", "")  # restored afterwards
        folder = tmp_path_factory.mktemp("toy_data")
        toy.write_dataset(folder)
        yield folder


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Starts every test from the same random state, alone or in a suite."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (Detectron2's augmentations draw from the global state)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def third_party_warnings() -> None:
    """Ignores what the commands ignore too; pytest sets up anew which warnings each test sees."""
    filter_third_party_warnings()
