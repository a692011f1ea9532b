"""The summary that ``train`` prints at the end: results, output files, the next command."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .doors import program

if TYPE_CHECKING:
    from omegaconf import DictConfig

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")


def print_ending(cfg: DictConfig, config_file: str, results: dict[str, Any]) -> None:
    """Prints and draws the results of a training run.

    Args:
        cfg: The config of the run.
        config_file: The config file as the user named it, for the next command.
        results: Results of the last evaluation; nothing is printed unless they include boxes.
    """
    from rich.console import Console

    from ..engine.console import quiet_evaluation

    if not isinstance(results.get("bbox"), dict):
        return
    output_dir = Path(cfg.train.output_dir)
    final = output_dir / "model_final.pth"
    rows = {"last": {name: float(value) for name, value in results["bbox"].items()}}
    weights, detections = final, output_dir / "inference" / "coco_instances_results.json"
    best = _read_best(output_dir) if _enabled(cfg, "best_checkpoint") else None
    if best is not None:
        label = f"best, iteration {best['iteration'] + 1}"
        is_last = best["iteration"] + 1 >= cfg.train.max_iter
        rows = {label: best["bbox"]} if is_last else {**rows, label: best["bbox"]}
        weights, detections = best["path"], best["detections"]
    # Class and folder names may contain brackets and colons, but are not markup.
    width = max(80, Console().width)
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with quiet_evaluation():
        images = _an_image_folder(cfg)
    console.print(_table(rows))
    per_class = _per_class(list(rows.values())[-1])
    if per_class is not None:
        console.print(per_class)
    threshold = None
    if _enabled(cfg, "report"):
        threshold = _draw(cfg, console, detections)
    if cfg.train.get("fast_dev_run"):  # whose weights nobody needs
        return
    name = "Best weights" if weights != final else "Weights"
    console.print(f"{name}: {weights}", soft_wrap=True)
    if weights != final:
        console.print(f"Last weights: {final}", soft_wrap=True)
    console.print("Next, detect in images of your own (a file, a 'pattern', a folder):")
    console.print(f"  {_next_command(config_file, weights, threshold, images)}", soft_wrap=True)


def _draw(cfg: DictConfig, console: Any, detections: Path) -> float | None:
    """Draws the learning curve and pictures; returns the score threshold of the best F1."""
    from ..engine.console import quiet_evaluation
    from ..visualization import draw_worst_images, plot_training_curves

    output_dir = Path(cfg.train.output_dir)
    curve = plot_training_curves(output_dir / "metrics.json", output_dir / "learning_curve.png")
    console.print(f"Learning curve: {curve}", soft_wrap=True)
    names = cfg.dataloader.test.dataset.names
    if not isinstance(names, str) or not detections.is_file():
        return None
    with quiet_evaluation():
        report = draw_worst_images(
            names, detections, output_dir / "pictures", num_pictures=cfg.train.report.num_pictures
        )
    if report.pictures:
        console.print(
            f"Validation images, ground truth beside detections, the worst first: "
            f"{report.pictures[0].parent}",
            soft_wrap=True,
        )
    console.print(f"Score threshold of the best F1 ({report.f1:.2f}): {report.score_thresh:g}")
    return report.score_thresh


def _table(rows: dict[str, dict[str, float]]) -> Any:
    from rich.table import Table

    metrics = [name for name in _METRICS if any(name in row for row in rows.values())]
    table = Table(title="Boxes of the validation set")
    table.add_column("weights")
    for name in metrics:
        table.add_column(name, justify="right")
    for label, row in rows.items():
        table.add_row(label, *(_number(row.get(name, math.nan)) for name in metrics))
    return table


def _per_class(row: dict[str, float]) -> Any:
    """Returns a table of each class's AP, in columns side by side; None for a single class."""
    from rich.table import Table

    values = {
        name.removeprefix("AP-"): value for name, value in row.items() if name.startswith("AP-")
    }
    if len(values) < 2:
        return None
    num_columns = min(3, -(-len(values) // 10))
    table = Table(title="AP of each class")
    for _ in range(num_columns):
        table.add_column("class", overflow="fold")
        table.add_column("AP", justify="right")
    cells = [cell for name, value in values.items() for cell in (name, _number(value))]
    for start in range(0, len(cells), 2 * num_columns):
        table.add_row(*cells[start : start + 2 * num_columns])
    return table


def _next_command(config_file: str, weights: Path, threshold: float | None, images: str) -> str:
    command = [*program("predict")]
    command += ["--config-file", config_file, "--weights", str(weights)]
    if threshold is not None:
        command += ["--confidence-threshold", f"{threshold:g}"]
    command += ["--input", images, "--output", str(weights.parent / "detections")]
    return shlex.join(command)


def _an_image_folder(cfg: DictConfig) -> str:
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.utils.file_io import PathManager

    from ..plain.files import find_images

    names = cfg.dataloader.test.dataset.names
    if not isinstance(names, str) or names not in DatasetCatalog:
        return "IMAGES"
    root = MetadataCatalog.get(names).get("image_root")
    if root and PathManager.isdir(root):
        folder = PathManager.get_local_path(root)
        if find_images([folder])[0]:  # otherwise they are in its subfolders
            return folder
    dataset = DatasetCatalog.get(names)
    return str(Path(dataset[0]["file_name"]).parent) if dataset else "IMAGES"


def _read_best(output_dir: Path) -> dict[str, Any] | None:
    """Reads what ``model_best.pth`` contains besides the weights; None if there is no such file."""
    from ..checkpoint import load_file
    from ..engine.evaluation_hooks import BEST, BEST_DETECTIONS

    path = output_dir / f"{BEST}.pth"
    if not path.is_file():
        return None
    content = load_file(path)
    results = content.get("results", {})
    boxes = {
        key.removeprefix("bbox/"): value
        for key, value in results.items()
        if key.startswith("bbox/")
    }
    return {
        "path": path,
        "iteration": content["iteration"],
        "bbox": boxes,
        "detections": output_dir / BEST_DETECTIONS,
    }


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "-"


def _enabled(cfg: DictConfig, name: str) -> bool:
    return bool((cfg.train.get(name) or {}).get("enabled", False))
