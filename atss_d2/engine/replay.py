"""Runs a training step again that stopped a run, and finds where it stops being finite."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model as build_yaml_model
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn

from ..checkpoint import CheckpointError, load_file
from ..config import by_kind, load_view, resolve_device
from .models import autocast_dtype, build_model, is_enabled
from .nonfinite import inputs_from_plain, likely_causes
from .rng import preserved_rng, set_random_states
from .step import StepTrainer


class Replayed(NamedTuple):
    """What a step did in one process when it was run again.

    Attributes:
        rank: The process of the run.
        iteration: Number of the step.
        images: File names of the batch.
        losses: Losses by name.
        norm: Norm of the gradient.
        run_losses: Losses that the run had; of several processes, with normalizers of them all.
        run_norm: Norm that the run had, likewise.
        output: Module that gave the first output that is not finite; None if there was none.
        gradient: Module whose output got the first gradient that is not finite; likewise.
        parameters: Names of the parameters whose gradient is not finite.
        causes: Likely causes with their remedies; empty if all is finite.
    """

    rank: int
    iteration: int
    images: list[str]
    losses: dict[str, float]
    norm: float
    run_losses: dict[str, float]
    run_norm: float
    output: str | None
    gradient: str | None
    parameters: list[str]
    causes: list[str]


def replay(
    folder: str | os.PathLike[str], *, device: str = "cuda", dtype: torch.dtype | None = None
) -> list[Replayed]:
    """Runs the step again, the batch of one process after another.

    No code in the files is executed. The losses of several processes are normalized as if each
    were alone.

    Args:
        folder: A folder ``nonfinite_<iteration>`` of a run.
        device: Where to run; without a GPU, the CPU.
        dtype: Precision of the forward pass. Default: that of the run.

    Returns:
        What happened in every process.

    Raises:
        CheckpointError: A file is missing, damaged or refused.
        FileNotFoundError: The folder has no config.
    """
    folder = Path(folder)
    files = sorted(folder.glob("rank*.pth"), key=lambda path: int(path.stem[len("rank") :]))
    if not files:
        raise CheckpointError(
            f"'{folder}' is not the folder of a step: it has no rank0.pth; a run that stops writes "
            "nonfinite_<iteration> into its output folder"
        )
    cfg = load_view(folder / "config.yaml", device=resolve_device(device)).cfg
    state = load_file(folder / "state.pth")
    model = by_kind(cfg, lazy=build_model, yaml=build_yaml_model)(cfg)
    model.load_state_dict(state["model"])
    model.train()
    if dtype is None:
        dtype = by_kind(cfg, lazy=_lazy_dtype, yaml=_yaml_dtype)(cfg)
    num_parts = by_kind(cfg, lazy=lambda c: c.train.get("accumulate", 1), yaml=lambda _: 1)(cfg)
    return [_replay_rank(load_file(path), path, model, dtype, num_parts) for path in files]


def _lazy_dtype(cfg: DictConfig) -> torch.dtype | None:
    return autocast_dtype(cfg) if is_enabled(cfg, "amp") else None


def _yaml_dtype(cfg: CfgNode) -> torch.dtype | None:
    return torch.float16 if cfg.SOLVER.AMP.ENABLED else None


def _replay_rank(
    content: dict[str, Any],
    path: Path,
    model: nn.Module,
    dtype: torch.dtype | None,
    num_parts: int,
) -> Replayed:
    batch = [inputs_from_plain(x) for x in content["batch"]]
    # Only its gradient is of interest: it never steps.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = StepTrainer(model, None, optimizer, autocast_dtype=dtype, accumulate=num_parts)
    with preserved_rng(), _first_places(model) as places, EventStorage(content["iteration"]):
        set_random_states(content["random_states"])
        losses, norm = trainer.compute(batch)
    gradients = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    parameters = [name for name, x in gradients.items() if not bool(x.isfinite().all())]
    is_finite = math.isfinite(norm) and all(map(math.isfinite, losses.values()))
    return Replayed(
        int(path.stem[len("rank") :]),
        content["iteration"],
        [str(x.get("file_name", "?")) for x in batch],
        losses,
        norm,
        content["losses"],
        content["norm"],
        places.get("output"),
        places.get("gradient"),
        parameters,
        [] if is_finite else likely_causes(model, batch, dtype),
    )


@contextlib.contextmanager
def _first_places(model: nn.Module) -> Iterator[dict[str, str]]:
    """Yields a dict of the modules with the first bad ``output`` and ``gradient``."""
    places: dict[str, str] = {}

    def see(kind: str, name: str, value: Tensor) -> None:
        if kind not in places and not bool(value.isfinite().all()):
            places[kind] = name

    def watch(name: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in _tensors(output):
                see("output", name, tensor)
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: see("gradient", name, gradient))

        return hook

    named = [(name or type(model).__name__, module) for name, module in model.named_modules()]
    handles = [module.register_forward_hook(watch(name)) for name, module in named]
    try:
        yield places
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
