"""Training runs through train_net.py, as a person starts them; exported files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from atss_d2.export import Metadata, export_torchscript, load_exported

from .registry import Environment, check, full_float32, require
from .small import mobile_detector, unmatched

ROOT = Path(__file__).resolve().parents[2]
# Of the way that the weights went: two runs that train differently are as far apart as that way.
_RESUMED, _TWO_PROCESSES = 0.02, 0.01
_RUN_SECONDS = 150
# Images of equal size: GroupNorm sees the padding of a batch, which depends on its images.
_CONFIG = """\
import detectron2.data.transforms as T
import torch
from detectron2.config import LazyCall as L

from atss_d2 import get_config

_cfg = get_config("demo/atss_mobilenetv2_shapes")
_cfg.dataloader.train.mapper.augmentations = [L(T.Resize)(shape=[{side}, {side}])]
_cfg.dataloader.train.aspect_ratio_grouping = False
_cfg.dataloader.evaluator = None
_cfg.optimizer._target_ = torch.optim.SGD
del _cfg.optimizer["betas"]
_cfg.optimizer.update(lr=2e-3, momentum=0.9)
_cfg.train.update(device={device!r}, max_iter={max_iter}, log_period=1, eval_period=0)
_cfg.train.ema.enabled = False
_cfg.train.checkpointer.update(period={period}, max_to_keep=100)
model, dataloader, optimizer, lr_multiplier, train = (
    _cfg[key] for key in ("model", "dataloader", "optimizer", "lr_multiplier", "train")
)
"""


class _Run:
    """One training: a folder and the command that fills it."""

    def __init__(self, env: Environment, name: str, *, max_iter: int, period: int) -> None:
        self.folder = env.folder / name
        self.config = env.folder / f"{name}.py"
        text = _CONFIG.format(
            device=env.device, max_iter=max_iter, period=period, side=env.choose(320, 128)
        )
        self.config.write_text(text)

    def start(self, *flags: str, overrides: tuple[str, ...] = ()) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(self.config)]
        command += [*flags, f"train.output_dir={self.folder}", *overrides]
        self.console = self.folder.with_suffix(".log")
        with self.console.open("a") as out:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def finish(self, *flags: str, overrides: tuple[str, ...] = ()) -> _Run:
        """Runs to the end.

        Raises:
            AssertionError: The training failed; the message has its last line.
        """
        process = self.start(*flags, overrides=overrides)
        try:
            code = process.wait(_RUN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"no end after {_RUN_SECONDS} s: {self._last_line()}") from None
        assert code == 0, f"exit code {code}: {self._last_line()}"
        return self

    def kill_at(self, iteration: int, *flags: str, overrides: tuple[str, ...] = ()) -> _Run:
        """Kills the training once it has logged an iteration.

        Raises:
            AssertionError: It ended before.
        """
        process = self.start(*flags, overrides=overrides)
        end = time.monotonic() + _RUN_SECONDS
        try:
            while self.last_iteration() < iteration:
                assert process.poll() is None, f"ended too early: {self._last_line()}"
                assert time.monotonic() < end, "did not get there in time"
                time.sleep(0.005)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        return self

    def rows(self) -> list[dict]:
        path = self.folder / "metrics.json"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def last_iteration(self) -> int:
        return max((row["iteration"] for row in self.rows()), default=-1)

    def weights(self, name: str = "model_final") -> torch.Tensor:
        """Returns all weights in one row, float64."""
        model = torch.load(self.folder / f"{name}.pth", map_location="cpu")["model"]
        floats = [x for _, x in sorted(model.items()) if x.is_floating_point()]
        return torch.cat([x.flatten().double() for x in floats])

    def _last_line(self) -> str:
        lines = [x for x in self.console.read_text(errors="replace").splitlines() if x.strip()]
        return lines[-1] if lines else "it printed nothing"


def _distance(found: _Run, expected: _Run, start: str) -> float:
    """Returns how far two runs are apart, as a share of the way from an early checkpoint."""
    end = expected.weights()
    return ((found.weights() - end).norm() / (end - expected.weights(start)).norm()).item()


def _amp(env: Environment) -> tuple[str, ...]:
    # On the CPU, float16 does not train.
    dtype = "float16" if env.is_cuda else "bfloat16"
    return ("train.amp.enabled=True", f"train.amp.dtype={dtype}")


@check("a killed run under AMP resumes as if it had not been", seconds=75)
def resume_under_amp(env: Environment) -> str:
    """Weights, optimizer and gradient scaler continue; atomics leave a float tolerance."""
    max_iter, period = env.choose((60, 20), (4, 2))
    size = {"max_iter": max_iter, "period": period}
    whole = _Run(env, "whole", **size).finish(overrides=_amp(env))
    killed = _Run(env, "killed", **size).kill_at(period, overrides=_amp(env))
    assert killed.last_iteration() < max_iter - 1, "the run was over before it could be killed"
    killed.finish("--resume", overrides=_amp(env))
    assert "Starting training from iteration" in killed.console.read_text(), "it did not resume"
    distance = _distance(killed, whole, f"model_{period - 1:07d}")
    require(distance, _RESUMED, "distance of the weights, as a share of their way")
    return f"weights are {distance:.1e} of their way apart after {max_iter} iterations"


@check("two processes train like one (NCCL)", seconds=75, num_gpus=2)
def two_processes(env: Environment) -> str:
    """The same images in every iteration; float32, so that only sums differ."""
    size = {"max_iter": env.choose(5, 3), "period": 1}
    one = _Run(env, "one", **size).finish("--num-gpus", "1")
    two = _Run(env, "two", **size).finish("--num-gpus", "2")
    distance = _distance(two, one, "model_0000000")
    require(distance, _TWO_PROCESSES, "distance of the weights, as a share of their way")
    return f"weights are {distance:.1e} of their way apart after {size['max_iter']} iterations"


@check("an exported file detects what the model detects", seconds=25)
def exported(env: Environment) -> str:
    """TorchScript, traced and run on the device, compared as sets."""
    full_float32()
    model = mobile_detector().to(env.device)
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8)
    metadata = Metadata.from_model(
        model, config="gpu", class_names=list("abcdef"), shortest_edge=96, max_size=128
    )
    path = export_torchscript(model, image[None], env.folder / "m.ts", metadata=metadata)
    found = load_exported(path, device=env.device)(image[None])
    num = int(found.num_detections[0])
    found = [torch.from_numpy(x[0, :num].copy()) for x in found[:3]]
    with torch.no_grad():
        expected = model([{"image": image, "height": 96, "width": 128}])[0]["instances"]
    expected = (expected.pred_boxes.tensor, expected.scores, expected.pred_classes)
    wrong = unmatched(found, expected, pixels=0.05, score=1e-4)
    # Scores that are equal but for rounding may fall on either side of the limit of 100.
    require(wrong, 0.05 * num, "detections without a partner")
    return f"{num} detections, {wrong} without a partner"
