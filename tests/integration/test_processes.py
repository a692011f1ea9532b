"""Changed detectors in DistributedDataParallel: two processes on the CPU, over gloo."""

import datetime

import pytest
import torch
from detectron2.engine import launch
from torch.nn.parallel import DistributedDataParallel

from atss_d2 import use_atss
from tests import detectron2_models as d2

BUILDERS = {"retinanet": d2.retinanet, "fcos": d2.fcos}
REGION = {"gt_ignore": [False, False, True]}


def batch_of(rank):
    """The second process has no boxes, and no ignore regions either."""
    return [d2.image(d2.BOXES, 0, **REGION)] if rank == 0 else [d2.image((), 1)]


def build(name):
    return use_atss(BUILDERS[name](), ignore_ioa_thresh=0.5)


def train_one_of_two(folder):
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    results = {}
    for name in BUILDERS:
        model = DistributedDataParallel(build(name))
        results[name] = [d2.gradients_of(model, batch_of(rank)) for _ in range(2)]
    if rank == 0:
        torch.save(results, f"{folder}/results.pth")


def test_gradients_are_the_means_over_the_processes(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("Detectron2's launch gives every process a GPU; this compares on the CPU")
    launch(
        train_one_of_two,
        2,
        dist_url="auto",
        args=(str(tmp_path),),
        timeout=datetime.timedelta(minutes=5),
    )
    results = torch.load(tmp_path / "results.pth")
    for name in BUILDERS:
        models = [build(name) for _ in range(2)]  # Detectron2's normaliser differs by process
        for iteration in range(2):
            first, second = (d2.gradients_of(m, batch_of(r)) for r, m in enumerate(models))
            expected = {f"module.{key}": (first[key] + second[key]) / 2 for key in first}
            assert any(gradient.any() for gradient in first.values())
            torch.testing.assert_close(results[name][iteration], expected, rtol=1e-4, atol=1e-6)
