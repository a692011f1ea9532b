#!/usr/bin/env python
"""Shows that several processes train as one: losses, gradients, and weights after steps of SGD.

    python tools/equal_processes.py
    python tools/equal_processes.py --processes 2 --steps 1

A small ATSS trains on random images, on the CPU: the same batch in one process, and shared by k
processes in DistributedDataParallel, whole or in micro-batches (train.accumulate). A loss that each
part divides by its own number of boxes would fail here, most of all when a part has no box. The
table shows the differences from one process with the whole batch: the norm over all values,
relative to their norm; float32 rounds by 6e-8. Exit code 1 if one is above --tolerance (gradients:
ten times that).
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is compared is arithmetic, not GPUs
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Must be imported before Detectron2: silences deprecation warnings raised by its import.
from atss_d2.warning_filters import filter_in_child_processes, filter_third_party_warnings

# isort: split
import torch
from detectron2.engine import create_ddp_model, launch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor, nn

from atss_d2 import get_config
from atss_d2.engine import build_model, leave_process_group
from atss_d2.engine.step import StepTrainer

BATCH = 4  # images, so at most as many processes times micro-batches
SIZE = (96, 128)
# Boxes of each image; the first process gets the first images.
SCENES = {
    "boxes in all images": (3, 1, 5, 2),
    "no boxes in half of the images": (3, 1, 0, 0),
    "one box in all": (1, 0, 0, 0),
    "no boxes": (0, 0, 0, 0),
}


def make_model() -> nn.Module:
    """Builds ATSS on MobileNetV2, with random weights and norms without batch statistics."""
    cfg = get_config("demo/atss_mobilenetv2_trees")
    cfg.train.device = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return model


def make_batch(counts: tuple[int, ...]) -> list[dict]:
    """Makes images of noise, with so many boxes."""
    generator = torch.Generator().manual_seed(1)
    batch = []
    for count in counts:
        image = torch.rand(3, *SIZE, generator=generator) * 255
        corners = torch.rand(count, 2, generator=generator) * 64
        sides = torch.rand(count, 2, generator=generator) * 48 + 16
        limit = torch.tensor([SIZE[1], SIZE[0]], dtype=torch.float32)
        boxes = torch.cat([corners, torch.minimum(corners + sides, limit)], dim=1)  # (M, 4)
        instances = Instances(SIZE)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.zeros(count, dtype=torch.int64)
        batch.append({"image": image, "instances": instances})
    return batch


def train(counts: tuple[int, ...], steps: int, accumulate: int) -> dict[str, dict[str, Tensor]]:
    """Trains this process's part of the batch; returns losses and gradients of the first step."""
    size = BATCH // comm.get_world_size()
    start = comm.get_rank() * size
    batch = make_batch(counts)[start : start + size]
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    # device_ids are those of GPUs.
    parallel = create_ddp_model(model, device_ids=None)
    trainer = StepTrainer(parallel, None, optimizer, accumulate=accumulate)
    results: dict[str, dict[str, Tensor]] = {}
    for step in range(steps):
        losses, _ = trainer.compute(batch)
        if step == 0:
            mean = torch.tensor(list(losses.values()), dtype=torch.float64)
            if comm.get_world_size() > 1:
                torch.distributed.all_reduce(mean)
            results["losses"] = dict(zip(losses, mean / comm.get_world_size()))
            results["gradients"] = {
                name: parameter.grad.clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        optimizer.step()
    results["weights"] = {name: x.detach().clone() for name, x in model.named_parameters()}
    return results


def splits(num_processes: int) -> list[int]:
    """Returns the numbers of micro-batches that the part of a process can be split into."""
    return [m for m in (1, 2, 4) if num_processes * m <= BATCH]


def work(folder: str, steps: int) -> None:
    """What each process does: all scenes and splits; the first one writes the results."""
    filter_third_party_warnings()
    torch.set_num_threads(1)
    results = {
        (name, m): train(counts, steps, m)
        for name, counts in SCENES.items()
        for m in splits(comm.get_world_size())
    }
    if comm.is_main_process():
        torch.save(results, f"{folder}/{comm.get_world_size()}.pth")
    leave_process_group()


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Returns the norm of the difference of all values, relative to the norm of all values."""
    assert found.keys() == expected.keys()
    gaps = torch.cat([(found[name] - x).double().flatten() for name, x in expected.items()])
    values = torch.cat([x.double().flatten() for x in expected.values()])
    return float(gaps.norm() / values.norm())


def compare(numbers: list[int], steps: int) -> list[tuple[str, int, int, float, float, float]]:
    """Returns (scene, processes, micro-batches, difference of losses, of gradients, of weights)."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for k in sorted({1, *numbers}):
            timeout = datetime.timedelta(minutes=10)
            launch(work, k, dist_url="auto", args=(folder, steps), timeout=timeout)
            results[k] = torch.load(Path(folder) / f"{k}.pth")
    parts = ("losses", "gradients", "weights")
    return [
        (scene, k, m, *(difference(found[x], results[1][scene, 1][x]) for x in parts))
        for scene in SCENES
        for k in numbers
        for m in splits(k)
        for found in [results[k][scene, m]]
        if (k, m) != (1, 1)
    ]


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], choices=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=5, help="of SGD (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-6, help="(default: %(default)s)")
    args = parser.parse_args()
    filter_in_child_processes()
    rows = compare(args.processes, args.steps)
    headers = ["scene", "processes", "micro-batches", "losses", "gradients"]
    headers.append(f"weights after {args.steps} steps")
    print(tabulate(rows, headers=headers, floatfmt=".1e"))
    # Gradients are sums of values that cancel.
    limits = (args.tolerance, 10 * args.tolerance, args.tolerance)
    return int(any(x > limit for row in rows for x, limit in zip(row[3:], limits)))


if __name__ == "__main__":
    sys.exit(main())
