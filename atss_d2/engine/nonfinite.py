"""Says why a step's losses or gradient are not finite, and keeps the step for a replay."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode, LazyConfig
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor, nn

from ..checkpoint import save_file
from ..config import by_kind
from .sharded_optimizer import gather_state

logger = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """A loss or the gradient is not finite; the message says where, and what usually helps."""


class Step(NamedTuple):
    """One training step of this process.

    Attributes:
        iteration: Number of the step.
        batch: Inputs of the model.
        losses: The losses by name.
        norm: Norm of the gradient of all processes.
        random_states: Random states before the step, see :func:`random_states`.
    """

    iteration: int
    batch: Sequence[Any]
    losses: dict[str, float]
    norm: float
    random_states: dict[str, Any]


def local_report(step: Step) -> dict[str, Any]:
    """Returns what other processes need to know of a step: its bad losses and its images."""
    return {
        "rank": comm.get_rank(),
        "losses": {name: x for name, x in step.losses.items() if not math.isfinite(x)},
        "images": [str(x.get("file_name", "?")) for x in step.batch if isinstance(x, Mapping)],
    }


def explain(step: Step, reports: Sequence[Mapping[str, Any]], lr: float) -> str:
    """Says what is not finite, in which step.

    Args:
        step: The step.
        reports: :func:`local_report` of all processes.
        lr: Learning rate.
    """
    bad = [report for report in reports if report["losses"]]
    place = f"in iteration {step.iteration} (lr {lr:g}"
    if not bad:
        images = [name for report in reports for name in report["images"]]
        what = f"the norm of the gradient is {step.norm:g}"
        return f"{what} {place}; images: {_some(images)}), while the losses are finite"
    losses = {name: value for report in bad for name, value in report["losses"].items()}
    what = ", ".join(f"{name} is {value:g}" for name, value in losses.items())
    if len(reports) > 1:
        place += f"; process {', '.join(str(report['rank']) for report in bad)}"
    images = [name for report in bad for name in report["images"]]
    return f"{what} {place}; images: {_some(images)})"


def likely_causes(model: nn.Module, batch: Sequence[Any], dtype: torch.dtype | None) -> list[str]:
    """Returns likely causes with their remedies, the surest first.

    Args:
        model: The model, with the weights before the step.
        batch: Inputs of the model.
        dtype: Precision of the forward pass; None for that of the weights.
    """
    causes = []
    weights = [name for name, x in model.state_dict().items() if not bool(x.isfinite().all())]
    if weights:
        causes.append(
            f"{len(weights)} weights were not finite before this step ({_some(weights)}): start "
            "from another checkpoint"
        )
    norms = [x for x in model.modules() if isinstance(x, FrozenBatchNorm2d)]
    untrained = [x for x in norms if not x.running_mean.any() and bool((x.weight == 1).all())]
    if untrained:
        causes.append(
            f"{len(untrained)} frozen norms have no statistics: start from a checkpoint that has "
            "them (train.init_checkpoint, MODEL.WEIGHTS), or set another norm"
        )
    for x in batch:
        problem = _problem_of(x) if isinstance(x, Mapping) else None
        if problem:
            causes.append(f"'{x.get('file_name', '?')}' {problem}: correct or remove it")
    if dtype == torch.float16:
        causes.append("float16 overflows at 65504: set train.amp.dtype=bfloat16, or no amp")
    causes.append(
        "usually a lower learning rate, a longer warm-up or gradient clipping "
        "(train.clip_gradients, SOLVER.CLIP_GRADIENTS) helps"
    )
    return causes


def _problem_of(x: Mapping[str, Any]) -> str | None:
    image, instances = x.get("image"), x.get("instances")
    if isinstance(image, Tensor) and not bool(image.isfinite().all()):
        return "has pixels that are not finite"
    if not isinstance(instances, Instances) or not instances.has("gt_boxes"):
        return None
    boxes = instances.gt_boxes.tensor
    if not bool(boxes.isfinite().all()):
        return "has boxes that are not finite"
    if bool((boxes[:, 2:] <= boxes[:, :2]).any()):
        return "has boxes without area"
    return None


class StepRecorder:
    """Writes a step into a folder that ``tools/replay.py`` runs again."""

    def __init__(self, cfg: DictConfig | CfgNode, output_dir: str) -> None:
        """
        Args:
            cfg: The config of the run; it is not changed.
            output_dir: Folder of the run.
        """
        self._cfg = cfg
        self._output_dir = output_dir

    def __call__(self, step: Step, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
        """Writes ``nonfinite_<iteration>/``; all processes must call this.

        The files hold plain values and tensors: ``state.pth`` weights and optimizer before the
        step, ``rank<k>.pth`` the batch of process k, its losses and random states.

        Returns:
            The folder.
        """
        folder = Path(self._output_dir) / f"nonfinite_{step.iteration:07d}"
        gather_state(optimizer)
        try:
            if comm.is_main_process():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                by_kind(self._cfg, lazy=_save_lazy, yaml=_save_yaml)(self._cfg, folder)
                state = {"model": model.state_dict(), "iteration": step.iteration}
                state["optimizer"] = optimizer.state_dict()
                state["num_processes"] = comm.get_world_size()
                save_file(state, folder / "state.pth")
        except OSError as error:  # must not hide the reason for which training stops
            logger.warning(f"the step cannot be kept: {error}")
        comm.synchronize()
        try:
            content = {**step._asdict(), "batch": [plain_inputs(x) for x in step.batch]}
            save_file({"model": {}, **content}, folder / f"rank{comm.get_rank()}.pth")
        except OSError as error:
            logger.warning(f"the batch cannot be kept: {error}")
        return os.fspath(folder)


def _save_lazy(cfg: DictConfig, folder: Path) -> None:
    LazyConfig.save(cfg, str(folder / "config.yaml"))


def _save_yaml(cfg: CfgNode, folder: Path) -> None:
    (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")


def plain_inputs(x: Any) -> Any:
    """Returns inputs of a model as plain values; what is neither tensor nor plain is left out."""
    if isinstance(x, Instances):
        fields = {k: v.tensor if isinstance(v, Boxes) else v for k, v in x.get_fields().items()}
        fields = {k: v for k, v in fields.items() if isinstance(v, Tensor)}
        return {"image_size": tuple(x.image_size), "fields": fields}
    if isinstance(x, Mapping):
        values = {str(k): plain_inputs(v) for k, v in x.items()}
        return {k: v for k, v in values.items() if v is not None}
    if isinstance(x, (list, tuple)):
        return [plain_inputs(v) for v in x]
    if isinstance(x, (np.ndarray, np.generic)):
        return torch.from_numpy(np.array(x))
    return x if isinstance(x, (Tensor, str, int, float)) else None


def inputs_from_plain(x: Mapping[str, Any]) -> dict[str, Any]:
    """Restores the inputs of an image from :func:`plain_inputs`."""
    x = dict(x)
    if "instances" in x:
        instances = Instances(tuple(x["instances"]["image_size"]))
        for name, value in x["instances"]["fields"].items():
            instances.set(name, Boxes(value) if name.endswith("boxes") else value)
        x["instances"] = instances
    return x


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
