"""A hook that profiles some iterations with torch's profiler."""

from __future__ import annotations

import logging
import os

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig
from torch.profiler import ProfilerActivity

from ..config import ConfigError
from .console import FILE_ONLY
from .models import is_enabled

logger = logging.getLogger(__name__)

_FOLDER = "profiler"


class ProfilerHook(HookBase):
    """Writes a trace of a few iterations of each process into ``profiler/`` of the output folder.

    Unlike Detectron2's ``TorchProfiler``, which profiles single iterations, it follows a schedule
    and warms up. ``log.txt`` gets a table of the slowest operations. Must be the last hook.
    """

    def __init__(self, output_dir: str, *, wait: int, warmup: int, active: int) -> None:
        """
        Args:
            output_dir: Folder of the run.
            wait: Iterations before the profiler starts.
            warmup: Iterations that it runs without keeping what it sees.
            active: Iterations in the trace.
        """
        self._folder = os.path.join(output_dir, _FOLDER)
        self._end = wait + warmup + active
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler: torch.profiler.profile | None = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=True,
        )

    @classmethod
    def from_config(cls, cfg: DictConfig) -> ProfilerHook | None:
        """Builds the hook of ``train.profiler``; None if it is not enabled.

        Raises:
            ConfigError: The run is too short, or a number is impossible.
        """
        if not is_enabled(cfg, "profiler"):
            return None
        options = {k: v for k, v in cfg.train.profiler.items() if k != "enabled"}
        if options["active"] < 1 or min(options.values()) < 0:
            raise ConfigError(
                f"train.profiler needs active >= 1, wait >= 0 and warmup >= 0, got {options}"
            )
        if sum(options.values()) > cfg.train.max_iter:
            raise ConfigError(
                f"train.profiler waits for, warms up in and profiles {sum(options.values())} "
                f"iterations ({options}), but train.max_iter is {cfg.train.max_iter}"
            )
        return cls(cfg.train.output_dir, **options)

    def _write(self, profiler: torch.profiler.profile) -> None:
        rank = comm.get_rank()
        torch.profiler.tensorboard_trace_handler(self._folder, worker_name=f"rank{rank}")(profiler)
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20)
        logger.info(f"Profiled:\n{table}", extra=FILE_ONLY)
        logger.info(f"The trace of the profiler is in {self._folder} (chrome://tracing opens it)")

    def before_train(self) -> None:
        self._profiler.start()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        self._profiler.step()
        if self.trainer.iter - self.trainer.start_iter + 1 >= self._end:
            self._stop()

    def after_train(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
