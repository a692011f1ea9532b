"""Deliberate faults of a set-up, to prove that the canary sees them and is silent without any.

    python -m reproduction.faults demo/atss_mobilenetv2_shapes --healthy 5

Every fault runs with all checks of the set-up and all bounds; the table says which of them saw it.
A healthy seed that is found guilty, or a fault that nothing saw, gives exit code 1.
"""

from __future__ import annotations

import argparse
import copy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate

import atss_d2
from atss_d2.warning_filters import filter_third_party_warnings

from .__main__ import TRAIN_NET
from .bounds import MEASURED_AT
from .canary import Verdict, sing

BOXES, CLASSES = "xyxy_boxes", "classes_from_1"
# Name -> overrides, and a fault of the data or None.
FAULTS: dict[str, tuple[tuple[str, ...], str | None]] = {
    "pixels not divided by their deviation": (("model.pixel_std=[1.0,1.0,1.0]",), None),
    "pixels divided by 255 twice": (("model.pixel_std=[14600.0,14600.0,14600.0]",), None),
    "mean of the pixels not subtracted": (("model.pixel_mean=[0.0,0.0,0.0]",), None),
    "batch of 1, learning rate not scaled": (("dataloader.train.total_batch_size=1",), None),
    "learning rate 20 times too large": (("optimizer.lr=0.02",), None),
    "learning rate 20 times too small": (("optimizer.lr=0.00005",), None),
    "no pretrained weights": (("train.init_checkpoint=",), None),
    "boxes are x1, y1, x2, y2": ((), BOXES),
    "classes count from 1": ((), CLASSES),
    "classes count from 1, one class more": (("+more_classes=1",), CLASSES),
}
_CONFIG = """\
from reproduction.faults import faulty_config

_cfg = faulty_config({name!r}, {fault!r}, {more})
model, dataloader, optimizer, lr_multiplier, train = (
    _cfg[key] for key in ("model", "dataloader", "optimizer", "lr_multiplier", "train")
)
"""


def faulty_config(name: str, fault: str, more_classes: int):
    """Returns a config whose training set has a fault; registers the set."""
    cfg = atss_d2.get_config(name)
    base = cfg.dataloader.train.dataset.names
    faulty = f"{base}_{fault}_{more_classes}"
    if faulty not in DatasetCatalog:
        DatasetCatalog.register(
            faulty, lambda: [_spoil(x, fault) for x in DatasetCatalog.get(base)]
        )
        if not more_classes:
            MetadataCatalog.get(faulty).set(thing_classes=MetadataCatalog.get(base).thing_classes)
    cfg.dataloader.train.dataset.names = faulty
    if more_classes:
        cfg.model.num_classes += more_classes
        cfg.dataloader.test.dataset.names = faulty  # the true one has fewer classes
        cfg.dataloader.evaluator = None
    return cfg


def _spoil(image: dict, fault: str) -> dict:
    image = copy.deepcopy(image)
    for annotation in image["annotations"]:
        if fault == BOXES:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, x + width, y + height]
        else:
            annotation["category_id"] += 1
    return image


def run(name: str, fault: str, folder: Path, *, iterations: int) -> Verdict:
    """Runs the canary on a recipe with one of the :data:`FAULTS`."""
    overrides, of_data = FAULTS[fault]
    config = name
    if of_data is not None:
        more = int(bool(overrides))
        overrides = ()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{of_data}_{more}.py"
        path.write_text(_CONFIG.format(name=name, fault=of_data, more=more))
        config = str(path)
    return sing(
        config,
        overrides,
        folder,
        train_net=TRAIN_NET,
        iterations=iterations,
        bounds=name,
        keep_going=True,
        say=lambda line: None,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs healthy seeds and all faults; prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="such as demo/atss_mobilenetv2_trees")
    parser.add_argument("--healthy", type=int, default=5, metavar="N", help="seeds (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=100, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("output/reproduction/faults"))
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    args = parser.parse_args(argv)
    filter_third_party_warnings()
    iterations, is_wrong, rows = max(MEASURED_AT) + 1, False, []
    folder = args.output / args.config.replace("/", "_")
    for seed in range(args.first_seed, args.first_seed + args.healthy):
        verdict = sing(
            args.config,
            (),
            folder,
            train_net=TRAIN_NET,
            iterations=iterations,
            seed=seed,
            keep_going=True,
            say=lambda line: None,
        )
        is_wrong |= bool(verdict.complaints)
        rows.append(_row(f"none, seed {seed}", verdict))
        print(*rows[-1], sep=" | ", flush=True)
    for fault in args.faults:
        verdict = run(args.config, fault, folder, iterations=iterations)
        is_wrong |= not verdict.complaints
        rows.append(_row(fault, verdict))
        print(*rows[-1], sep=" | ", flush=True)
    headers = ("fault", "seen before training", "seen in training", "sentence", "s")
    print("\n" + tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    return int(is_wrong)


def _row(fault: str, verdict: Verdict) -> tuple[str, ...]:
    before = [x for x in verdict.complaints if x.startswith("set-up: ")]
    during = [x for x in verdict.complaints if x not in before]
    first = (during or before or [""])[0].split(" (all of it")[0]
    return (
        fault,
        "yes" if before else "no",
        f"yes, after {len(verdict.rows)}" if during else "no",
        first[:150],
        f"{verdict.seconds:.0f}",
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("faults: stopped"))  # ends the training too
    sys.exit(main())
