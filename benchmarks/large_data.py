"""Measures what grows with a data set: start-up, memory, evaluation, and merging of detections.

    python -m benchmarks.large_data write coco.json --images 118000 --boxes 860000 --polygons
    python -m benchmarks.large_data start-up coco.json --processes 2 --workers 2
    python -m benchmarks.large_data check coco.json
    python -m benchmarks.large_data evaluation --images 5000 --detections 500000
    python -m benchmarks.large_data merge --detections 10400 --classes 80

The data are random, and there are no images: the mapper of the start-up reads none. Every command
measures what is there without atss_d2 as well, in the same run; ``start-up --only atss_d2`` does
not, for data sets that do not fit into memory otherwise. Seconds are those of the processors, so
that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import logging
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import atss_d2  # noqa: F401  (must be imported first: silences deprecation warnings)

# isort: split
import numpy as np
import torch
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.engine import launch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils import comm
from tabulate import tabulate

from atss_d2.data import register_coco
from atss_d2.data.categories import read_categories
from atss_d2.data.checks.dataset import check_coco_file
from atss_d2.data.shared_loading import MASK_KEYS, load_shared
from atss_d2.engine import build_train_loader, leave_process_group
from atss_d2.engine.coco_evaluation import FastCOCOEvaluator
from atss_d2.modeling.box_voting import vote

NAME = "large_data_coco"
GB = 2**30


def write(path: str, *, images: int, boxes: int, classes: int, polygons: bool) -> None:
    """Writes a file of COCO's format, one annotation after the other."""
    rng = np.random.default_rng(0)
    image_ids = rng.integers(images, size=boxes)
    category_ids = rng.integers(1, classes + 1, size=boxes)
    # Points of a polygon as in COCO: 20 in the middle, few of hundreds.
    num_points = rng.lognormal(3.0, 0.8, boxes).clip(3, 300).astype(int)

    def image(index: int) -> dict[str, Any]:
        size = {"height": 480, "width": 640} if index % 3 else {"height": 640, "width": 480}
        url = f"http://images.example.org/train/{index:012d}.jpg"
        return {
            "license": 3,
            "file_name": f"{index:012d}.jpg",
            "coco_url": url,
            "id": index,
            **size,
        }

    def annotation(index: int) -> dict[str, Any]:
        box = (rng.random(4) * [300, 300, 200, 170] + [0, 0, 2, 2]).round(2).tolist()
        outline = {}
        if polygons:
            outline["segmentation"] = [(rng.random(2 * num_points[index]) * 400).round(2).tolist()]
        return {
            **outline,
            "area": round(0.7 * box[2] * box[3], 4),
            "iscrowd": int(index % 85 == 3),
            "image_id": int(image_ids[index]),
            "bbox": box,
            "category_id": int(category_ids[index]),
            "id": index + 1,
        }

    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(classes)]
    with open(path, "w") as file:
        file.write(f'{{"categories": {json.dumps(categories)}, "images": [')
        _write_all(file, map(image, range(images)))
        file.write('], "annotations": [')
        _write_all(file, map(annotation, range(boxes)))
        file.write("]}")
    print(f"{path}: {os.path.getsize(path) / GB:.2f} GB")


def _write_all(file: io.TextIOBase, values: Iterable[dict]) -> None:
    for index, value in enumerate(values):
        file.write((", " if index else "") + json.dumps(value))


def memory(pid: int | str = "self") -> dict[str, float]:
    """Returns the proportional (PSS) and the unshared memory (USS) of a process in GB."""
    values = dict.fromkeys(("pss", "uss"), 0.0)
    with contextlib.suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, size = line.split()[:2]
            values["pss"] += (name == "Pss:") * int(size) / 2**20
            values["uss"] += name.startswith("Private_") * int(size) / 2**20
    return values


def descendants(pid: int) -> list[int]:
    """Returns the processes that a process started, directly or not."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def start_up(path: str, *, processes: int, workers: int, batches: int, only: str | None) -> None:
    """Measures the start of a training, up to its first batches."""
    rows = []
    kinds = {
        "Detectron2": (get_detection_dataset_dicts, build_detection_train_loader),
        "atss_d2": (load_for_boxes, build_train_loader),
    }
    for name, kind in kinds.items():
        if only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder, watched_memory() as peak:
            arguments = (*kind, path, workers, batches, f"{folder}/result.json")
            context = multiprocessing.get_context("spawn")  # whose memory is its own
            process = context.Process(target=_start_all, args=(processes, arguments))
            process.start()
            process.join()
            result = json.loads(Path(folder, "result.json").read_text())
        rows.append([name, *result, peak["pss"]])
    headers = [
        "",
        "loading (s)",
        "in all processes",
        "up to the first batches",
        "peak of a process",
    ]
    headers += ["PSS/USS of a process", "PSS/USS of a worker", "peak of all, PSS"]
    print(f"{path}, {processes} processes with {workers} workers each; GB:")
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"))


def load_for_boxes(names: str) -> Any:
    """Loads as the trainer does for a mapper of boxes."""
    load = functools.partial(get_detection_dataset_dicts, names)
    return load_shared(load, drop=MASK_KEYS)


def _start_all(processes: int, arguments: tuple) -> None:
    launch(_start_one, processes, dist_url="auto", args=arguments)


def _start_one(
    load: Callable, build: Callable, path: str, workers: int, batches: int, result: str
) -> None:
    """Body of a process; the first one writes the numbers."""
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    start = seconds_with_children()
    register_coco(NAME, path, "images")
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = load(NAME)
    loaded = seconds_with_children() - start
    loader = build(
        dataset, mapper=_unread, total_batch_size=2 * comm.get_world_size(), num_workers=workers
    )
    del dataset
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    seconds = seconds_with_children() - start  # without the workers, which have not ended
    comm.synchronize()
    own = memory()
    of_workers = [memory(pid) for pid in descendants(os.getpid())]
    comm.synchronize()
    usage = [resource.getrusage(x) for x in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    numbers = comm.gather((loaded, seconds, [x.ru_maxrss / 2**20 for x in usage], own, of_workers))
    if comm.is_main_process():
        loaded, seconds, peaks, own, of_workers = zip(*numbers)
        of_workers = [x for group in of_workers for x in group] or [{"pss": 0, "uss": 0}]
        row = [max(loaded), sum(loaded), max(seconds), max(map(max, peaks))]
        for group in (own, of_workers):
            row.append(
                "/".join(f"{np.mean([x[key] for x in group]):.2f}" for key in ("pss", "uss"))
            )
        Path(result).write_text(json.dumps(row))
    del iterator
    leave_process_group()


def seconds_with_children() -> float:
    """Returns the processor's seconds of this process and those that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _unread(x: dict) -> dict:
    return x


@contextlib.contextmanager
def watched_memory() -> Iterable[dict[str, float]]:
    """Measures the PSS of all processes that are started within the context, at its peak."""
    peak, ended = {"pss": 0.0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.3):
            total = sum(memory(pid)["pss"] for pid in descendants(os.getpid()))
            peak["pss"] = max(peak["pss"], total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def check(path: str) -> None:
    """Measures the checks of annotations before a training, and those before the next one."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ATSS_D2_CACHE"] = folder  # is empty
        kinds = {
            "classes": lambda: read_categories(path),
            "check": lambda: check_coco_file(path, "images"),
        }
        rows = [
            [f"{start} start: {name}", *_in_process(function)]
            for start in ("first", "next")
            for name, function in kinds.items()
        ]
    print(f"{path}:")
    print(tabulate(rows, ["", "seconds", "peak above the start (GB)"], tablefmt="pipe"))


def evaluation(*, images: int, detections: int) -> None:
    """Measures evaluators on one machine with the same detections."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/val.json"
        with contextlib.redirect_stdout(io.StringIO()):
            write(path, images=images, boxes=7 * images, classes=80, polygons=True)
        register_coco(NAME, path, "images")
        dicts = get_detection_dataset_dicts(NAME, filter_empty=False)
        outputs = [_detect(x, detections // images, rng) for x in dicts]
        rows, found = [], []
        kinds = {
            "Detectron2, pycocotools": functools.partial(COCOEvaluator, use_fast_impl=False),
            "atss_d2, hotcoco": FastCOCOEvaluator,
        }
        for name, kind in kinds.items():
            with contextlib.redirect_stdout(io.StringIO()):
                start = time.process_time()
                evaluator = kind(NAME, output_dir=folder)
                evaluator.reset()
                built = time.process_time()
                evaluator.process(dicts, outputs)
                processed = time.process_time()
                results = evaluator.evaluate()["bbox"]
                end = time.process_time()
            found.append(results)
            rows.append([name, built - start, processed - built, end - processed, results["AP"]])
    headers = ["", "ground truth (s)", "collecting (s)", "evaluate() (s)", "AP"]
    total = sum(len(x["instances"]) for x in outputs)
    print(f"{images} images, {total} detections:")
    print(tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"))
    largest = max(abs(found[0][key] - found[1][key]) for key in found[0])
    print(f"Largest difference of {len(found[0])} metrics: {largest:g}")


def _detect(x: dict, num: int, rng: np.random.Generator) -> dict:
    """Returns random detections of an image, the first of them near its objects."""
    boxes = rng.random((num, 4)) * [400, 300, 200, 150]
    classes = rng.integers(80, size=num)
    for index, annotation in enumerate(x["annotations"][:num]):
        boxes[index] = np.array(annotation["bbox"]) * rng.normal(1, 0.07, 4)
        classes[index] = annotation["category_id"]
    boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(min=1)
    found = Instances((x["height"], x["width"]))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    found.scores = torch.tensor(rng.random(num), dtype=torch.float32)
    found.pred_classes = torch.tensor(classes)
    return {"instances": found}


def merge(*, detections: int, classes: int) -> None:
    """Measures voting, and the matrix of all pairs that it needed before."""
    generator = torch.Generator().manual_seed(0)
    num = -(-detections // 18)  # objects, seen in 18 passes
    corners = torch.rand(num, 2, generator=generator) * torch.tensor([1200.0, 700.0])
    boxes = torch.cat((corners, corners + 20 + 180 * torch.rand(num, 2, generator=generator)), 1)
    boxes = boxes.repeat(18, 1)[:detections]
    boxes += 4 * torch.randn(boxes.shape, generator=generator)
    labels = torch.randint(classes, (num,), generator=generator).repeat(18)[:detections]
    scores = torch.rand(detections, generator=generator)
    kinds = {
        "IoUs of all pairs only": lambda: pairwise_iou(Boxes(boxes), Boxes(boxes)),
        "vote": lambda: vote(boxes, scores, labels),
    }
    rows = [[name, *_in_process(function)] for name, function in kinds.items()]
    print(f"{detections} detections of {classes} classes, one thread:")
    print(tabulate(rows, ["", "seconds", "peak above the start (GB)"], tablefmt="pipe"))


def _in_process(function: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds and the peak memory of a function, in a process of its own."""

    def run(pipe: Any) -> None:
        torch.set_num_threads(1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        function()
        seconds = time.process_time() - start
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pipe.send((round(seconds, 3), round((after - before) / 2**20, 3)))

    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(theirs,))
    process.start()
    result = ours.recv()
    process.join()
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("write", help="write annotations of random boxes")
    command.add_argument("path", metavar="FILE")
    command.add_argument("--images", type=int, default=118_000)
    command.add_argument("--boxes", type=int, default=860_000)
    command.add_argument("--classes", type=int, default=80)
    command.add_argument("--polygons", action="store_true", help="with outlines, as in COCO")
    command.set_defaults(run=write)
    command = commands.add_parser("start-up", help="measure the start of a training")
    command.add_argument("path", metavar="FILE")
    command.add_argument("--processes", type=int, default=2)
    command.add_argument("--workers", type=int, default=2, help="of each process")
    command.add_argument("--batches", type=int, default=200)
    command.add_argument("--only", choices=("Detectron2", "atss_d2"))
    command.set_defaults(run=start_up)
    command = commands.add_parser("check", help="measure the checks of annotations")
    command.add_argument("path", metavar="FILE")
    command.set_defaults(run=check)
    command = commands.add_parser("evaluation", help="measure evaluators")
    command.add_argument("--images", type=int, default=5000)
    command.add_argument("--detections", type=int, default=500_000)
    command.set_defaults(run=evaluation)
    command = commands.add_parser("merge", help="measure the merge of test-time augmentation")
    command.add_argument("--detections", type=int, default=10_400)
    command.add_argument("--classes", type=int, default=80)
    command.set_defaults(run=merge)
    arguments = vars(parser.parse_args(argv))
    del arguments["command"]
    arguments.pop("run")(**arguments)


if __name__ == "__main__":
    main()
