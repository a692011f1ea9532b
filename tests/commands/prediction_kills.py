"""Kills predictions of many images at random and aimed moments, and compares what is left.

    OMP_NUM_THREADS=1 python -m tests.commands.prediction_kills --kills 200

The command runs in a forked process, so that a run does not begin with the import of torch. After
each kill it is started again, until it ends by itself; then its lines must be those of a run that
was never killed: none missing, none twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from atss_d2.commands import predict
from atss_d2.engine import build_model
from atss_d2.plain import json_lines, shards
from tests import toy

NUM_IMAGES, NUM_BAD = 36, 3
LOG = os.path.join(tempfile.gettempdir(), f"prediction_kills.{os.getpid()}.log")
AIMED = ("half a line", "before run.json", "after images.jsonl", "before the first line")


def write_inputs(folder: Path, num_images: int = NUM_IMAGES) -> list[str]:
    """Draws images of two sizes, writes files that are no images; returns the command's flags."""
    rng = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    for i in range(num_images):
        size = (48, 64, 3) if i % 3 else (64, 48, 3)
        pixels = rng.integers(0, 255, size, dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i:03d}.png")
    for i in range(NUM_BAD):
        (images / f"bad_{i}.jpg").write_text("no image")
    config = folder / "config.py"
    toy.write_config(config, folder / "output")
    with config.open("a") as file:
        file.write('model.head.prior_prob = 0.3\ntrain.device = "cpu"\n')
        file.write("dataloader.test.mapper.augmentations[0].short_edge_length = 64\n")
    torch.manual_seed(0)
    cfg = toy.config(folder, **{"model.head.prior_prob": 0.3})
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    flags = ["--config-file", str(config), "--weights", str(folder / "model.pth")]
    return [*flags, "--confidence-threshold", "0.2"]


def read_lines(output: Path) -> list[str]:
    """The lines of all shards, sorted; of bad images as well."""
    paths = [*output.glob("detections.*.jsonl"), *output.glob("bad_images.*.jsonl")]
    return sorted(line for path in paths for line in path.read_text().splitlines())


def start(argv: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Starts the command in a forked process; returns its id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 99  # a bug
    try:
        log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        before()
        code = predict.main(argv)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(process: int) -> int:
    """Waits for a process; returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_after(argv: list[str], seconds: float) -> int:
    """Kills the command after a while; returns how it ended."""
    process = start(argv)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return exit_code(process)


def aim(moment: str, rng: random.Random) -> Callable[[], None]:
    """Returns what makes a command kill itself at a moment of :data:`AIMED`."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before() -> None:
        write, durably, num = os.write, shards.write_durably, rng.randrange(1, 8)

        def half(file: int, data: memoryview) -> int:
            nonlocal num
            num -= 1
            if num == 0:
                write(file, data[: rng.randrange(1, len(data))])
                die()
            return write(file, data)

        def durable(path: Path, text: str) -> None:
            if moment == "after images.jsonl" and path.name == "images.jsonl":
                durably(path, text)
                die()
            if moment == "before run.json" and path.name == "run.json":
                die()
            durably(path, text)

        if moment == "half a line":
            json_lines.os = _With(os, write=half)
        elif moment == "before the first line":
            json_lines.os = _With(os, write=die)
        shards.write_durably = durable

    return before


class _With:
    """A module in which some names are replaced."""

    def __init__(self, module: object, **names: object) -> None:
        self.__dict__.update(vars(module) | names)


def survive(flags: list[str], folder: Path, num_kills: int, seed: int = 0) -> Counter[str]:
    """Kills runs until there were ``num_kills`` kills, and compares each that ends.

    Returns:
        How often each kind of kill hit, and "runs", each of which was like one never killed.
    """
    rng, counts = random.Random(seed), Counter()
    expected, seconds = {}, {}
    while sum(counts.values()) - counts["runs"] < num_kills:
        num_workers, num_shards = rng.choice((0, 2)), rng.choice((1, 2))
        batch_size = rng.choice((1, 4))
        argv = [*flags, "--json-lines", "--input", str(folder / "images")]
        argv += ["--num-workers", str(num_workers), "--batch-size", str(batch_size)]
        key = (num_workers, batch_size)

        def commands(output: Path, argv=argv, num_shards=num_shards) -> list[list[str]]:
            shards = [["--shard", f"{i}/{num_shards}"] for i in range(num_shards)]
            return [[*argv, "--output", str(output), *shard] for shard in shards]

        if key not in expected:
            output = folder / f"whole_{num_workers}_{batch_size}"
            begin = time.monotonic()
            for command in commands(output):
                assert exit_code(start(command)) == 1
            seconds[key] = (time.monotonic() - begin) / num_shards
            expected[key] = read_lines(output)
            assert len(expected[key]) == len(list((folder / "images").iterdir()))
        with tempfile.TemporaryDirectory(dir=folder) as output:
            for command in commands(Path(output)):
                for _ in range(rng.randrange(1, 5)):
                    moment = rng.choice((*AIMED, "random", "random", "random", "random"))
                    if moment == "random":
                        code = kill_after(command, rng.uniform(0, 1.1 * seconds[key]))
                    else:
                        code = exit_code(start(command, aim(moment, rng)))
                    if code == -signal.SIGKILL:
                        counts[f"{moment}, {num_workers} workers"] += 1
                assert exit_code(start(command)) == 1
            assert_same_lines(read_lines(Path(output)), expected[key])
            counts["runs"] += 1
    os.unlink(LOG)  # it stays after an error
    return counts


def assert_same_lines(actual: list[str], expected: list[str]) -> None:
    """The same images with the same detections; a batch of other images rounds otherwise."""
    assert len(actual) == len(expected)
    for line, other in zip(map(json.loads, actual), map(json.loads, expected)):
        boxes = [np.array(x.pop("boxes", [])) for x in (line, other)]
        scores = [np.array(x.pop("scores", [])) for x in (line, other)]
        assert line == other
        np.testing.assert_allclose(*boxes, atol=1e-3)
        np.testing.assert_allclose(*scores, atol=1e-5)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = write_inputs(Path(folder))
        counts = survive(flags, Path(folder), args.kills, args.seed)
    for name, count in sorted(counts.items()):
        print(f"{count:5} {name}")
    print(f"{sum(counts.values()) - counts['runs']:5} kills; every run had each image once")


if __name__ == "__main__":
    main()
