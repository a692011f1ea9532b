"""Measures memory and time of train.activation_checkpointing on this machine's CPU.

    python -m benchmarks.activation_checkpointing

Each row is a process of its own, which trains R-50 for three steps on random images: the peak of
its resident memory above that of weights and gradients, and the processor time of the last two
steps. With ``--config coco/atss_dyhead_R_50_FPN_1x``, it measures another model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

ROWS = {
    "nothing": [],
    "head": ["head.cls_subnet", "head.bbox_subnet"],
    "head and backbone (default)": ["backbone", "head.cls_subnet", "head.bbox_subnet"],
    "head, FPN and each stage": [
        "backbone",
        "backbone.bottom_up.res?",
        "head.cls_subnet",
        "head.bbox_subnet",
    ],
}


def measure(
    parts: list[str], *, size: int, batch: int, config: str, overrides: list[str]
) -> dict[str, float]:
    """Trains in this process; returns MiB and seconds."""
    import torch
    from detectron2.config import instantiate
    from detectron2.structures import Boxes, Instances
    from detectron2.utils.events import EventStorage

    from atss_d2 import get_config
    from atss_d2.engine import apply_overrides
    from atss_d2.engine.activation_checkpointing import wrap_parts

    torch.set_num_threads(1)
    torch.manual_seed(0)
    cfg = apply_overrides(get_config(config), overrides)
    pyramid = cfg.model.backbone.get("backbone", cfg.model.backbone)  # DyHead has it inside
    for part in (pyramid.bottom_up.stages, pyramid.bottom_up.stem):
        part.norm = "BN"  # random weights need it
    model = instantiate(cfg.model)
    wrap_parts(model, parts)
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 200.0, 150.0], [5.0, 50.0, 60.0, 120.0]]))
    instances.gt_classes = torch.tensor([1, 2])
    images = [{"image": torch.rand(3, size, size) * 255, "instances": instances}] * batch
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for parameter in model.parameters():  # neither weights nor gradients are counted
        parameter.grad = torch.ones_like(parameter)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with EventStorage():
        for step in range(3):
            if step == 1:
                start = time.process_time()
            optimizer.zero_grad(set_to_none=False)
            loss = sum(model(images).values())
            loss.backward()
            optimizer.step()
    seconds = (time.process_time() - start) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mebibytes": (peak - before) / 1024, "seconds": seconds, "loss": loss.item()}


def main() -> None:
    """Prints a table, or one row's numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="pixels of a side (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="images (%(default)s)")
    parser.add_argument("--config", default="coco/atss_R_50_FPN_1x", help="(%(default)s)")
    parser.add_argument("overrides", nargs="*", help="of the config, key=value")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        options = {"config": args.config, "overrides": args.overrides}
        print(json.dumps(measure(ROWS[args.row], size=args.size, batch=args.batch, **options)))
        return
    print("| computed twice | peak memory | | time of a step | | last loss |")
    print("|---|---|---|---|---|---|")
    first: dict[str, float] = {}
    for row in ROWS:
        command = [sys.executable, "-m", "benchmarks.activation_checkpointing", "--row", row]
        command += ["--size", str(args.size), "--batch", str(args.batch)]
        command += ["--config", args.config, *args.overrides]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        first = first or found
        memory, seconds = (found[key] / first[key] for key in ("mebibytes", "seconds"))
        print(
            f"| {row} | {found['mebibytes']:.0f} MiB | x {memory:.2f} | {found['seconds']:.1f} s | "
            f"x {seconds:.2f} | {found['loss']:.6f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
