"""``predict`` for many images against a loop over the images with the Predictor."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import resource
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

import atss_d2
from atss_d2.commands import predict
from atss_d2.commands.predictor_detector import PredictorDetector
from atss_d2.commands.shard_run import ShardRun
from atss_d2.engine import build_model
from atss_d2.plain.manifest import Manifest
from atss_d2.plain.shard import Shard
from atss_d2.plain.shards import ShardResults

from ..results import Measurement
from ..settings import Settings
from ..timing import Contestant, race
from .step import Step

TITLE = "Prediction of many images"
CASE = "prediction"
_LOOP = "Predictor, image by image, JSON at the end"
_OURS = "--manifest, 1 worker"
# Flags of the contestants, without and with a process that reads images ahead.
_FLAGS = {
    "--manifest": [],
    _OURS: ["--num-workers", "1"],
    "--manifest, 1 worker, batches of 4": ["--num-workers", "1", "--batch-size", "4"],
}
_DATA = "shapes_val"
_CONFIG = "demo/atss_mobilenetv2_shapes"
_SHORT_EDGE = 128
_PHOTOGRAPH = (4000, 3000)
_BOX_TOLERANCE, _SCORE_TOLERANCE = 1e-2, 1e-4


def steps(settings: Settings) -> list[Step]:
    """Returns a race on small pictures, and one on files that take long to read."""
    return [
        Step("small pictures", functools.partial(_race_small, settings)),
        Step("photographs", functools.partial(_race_photographs, settings)),
    ]


def _race_small(settings: Settings) -> list[Measurement]:
    paths = [x["file_name"] for x in DatasetCatalog.get(_DATA)]
    num = settings.choose(200, 2)
    paths = [paths[i % len(paths)] for i in range(num)]
    return _race(settings, paths, f"{num} PNG files of {_DATA}, about 300 x 300")


def _race_photographs(settings: Settings) -> list[Measurement]:
    width, height = settings.choose(_PHOTOGRAPH, (60, 40))
    num = settings.choose(8, 2)
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.default_rng(0).integers(0, 255, (height // 20, width // 20, 3))
        image = Image.fromarray(pixels.astype(np.uint8)).resize((width, height))
        paths = [f"{folder}/{i}.jpg" for i in range(num)]
        image.save(paths[0])
        for path in paths[1:]:
            shutil.copy(paths[0], path)
        return _race(settings, paths, f"{num} JPEG files, {width} x {height}")


def _race(settings: Settings, paths: Sequence[str], scene: str) -> list[Measurement]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor = _predictor(folder, settings)
        manifest = folder / "list.txt"
        manifest.write_text("".join(f"{path}\n" for path in paths))
        loop = functools.partial(_loop, predictor, paths, folder / "loop.json")
        runs = {
            name: functools.partial(_run, predictor, manifest, flags, folder)
            for name, flags in _FLAGS.items()
        }
        _check_equal(loop(), *(run() for run in runs.values()))
        cpu: dict[str, list[float]] = {}
        contestants = [
            Contestant(name, functools.partial(_with_cpu_time, run, cpu.setdefault(name, [])))
            for name, run in {_LOOP: loop, **runs}.items()
        ]
        wall = race(contestants, settings)
    common = {"case": CASE, "scene": scene, "unit": "s", "ours": _OURS}
    notes = (
        f"{settings.threads} thread(s) for the model; a worker is a process with one thread. The "
        "start of the workers counts, that of the command does not.",
        "On a machine with other load, two processes get more of the time than one: compare the "
        "CPU time, in which reading ahead costs what it saves elsewhere.",
    )
    return [
        Measurement(
            **common,
            quantity=f"{quantity} per image",
            samples={
                name: [seconds / len(paths) for seconds in values[-len(wall[name]) :]]
                for name, values in samples.items()
            },
            notes=notes,
        )
        for quantity, samples in (("time", wall), ("CPU time", cpu))
    ]


def _with_cpu_time(run: Callable[[], object], seconds: list[float]) -> None:
    """Appends the CPU time of a call, with that of the workers that have ended."""
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before = [resource.getrusage(who) for who in users]
    run()
    pairs = zip(before, [resource.getrusage(who) for who in users])
    seconds.append(sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in pairs))


def _predictor(folder: Path, settings: Settings) -> atss_d2.Predictor:
    """Builds the demo's detector with random weights that find something in every image."""
    cfg = atss_d2.get_config(_CONFIG)
    augmentations = atss_d2.get_config("coco/atss_R_50_FPN_1x").dataloader.test.mapper.augmentations
    augmentations[0].short_edge_length = settings.choose(_SHORT_EDGE, 64)
    cfg.dataloader.test.mapper.augmentations = augmentations
    cfg.train.init_checkpoint = ""
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.constant_(model.head.cls_score.bias, 0.0)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return atss_d2.Predictor(cfg, folder / "model.pth", device=settings.device)


def _loop(predictor: atss_d2.Predictor, paths: Sequence[str], output: Path) -> list[list]:
    """The loop that people write; returns boxes and scores of each image."""
    results = []
    for path in paths:
        found = predictor(path)
        boxes, scores = found.pred_boxes.tensor.tolist(), found.scores.tolist()
        results.append([[[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes], scores])
    output.write_text(json.dumps(results))
    return results


def _run(predictor: atss_d2.Predictor, path: Path, flags: list[str], parent: Path) -> list[list]:
    with tempfile.TemporaryDirectory(dir=parent) as output:
        words = ["--config-file", _CONFIG, "--manifest", str(path), "--output", output, *flags]
        args = predict.get_parser().parse_args([*words, "--confidence-threshold", "0"])
        shard, manifest = Shard(0, 1), Manifest(path)
        results = ShardResults(Path(output), shard, manifest.num_images)
        detector = PredictorDetector(predictor, more_detections="")
        silence = contextlib.redirect_stderr(io.StringIO())
        with silence, contextlib.redirect_stdout(io.StringIO()):
            code = ShardRun(args, shard, manifest, detector, results).go()
        if code != 0:
            raise RuntimeError(f"prediction ended with {code}")
        lines = map(json.loads, shard.detections(Path(output)).read_text().splitlines())
        return [[x["boxes"], x["scores"]] for x in sorted(lines, key=lambda x: x["index"])]


def _check_equal(expected: list[list], *others: list[list]) -> None:
    for other in others:
        for (boxes, scores), (other_boxes, other_scores) in zip(expected, other, strict=True):
            np.testing.assert_allclose(other_boxes, boxes, atol=_BOX_TOLERANCE)
            np.testing.assert_allclose(other_scores, scores, atol=_SCORE_TOLERANCE)
