"""Writes a project's config: about twenty lines on top of a config from ``configs/custom/``."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ..checkpoint import CONVENTIONS
from ..data.categories import Categories
from ..data.custom.settings import MODELS, Settings

_WIDTH = 100


def config_text(
    folder: Path,
    settings: Settings,
    categories: Categories,
    *,
    train: tuple[Path, Path],
    val: tuple[Path, Path],
    title: str,
    command: str,
    init_checkpoint: Path | str | None,
) -> str:
    """Returns the text of ``config.py``.

    Args:
        folder: Folder of the file. Paths inside it are written relative to it, others as absolute
            paths, so that the file works from any working directory.
        settings: Values to set, with their reasons.
        categories: Categories of the data set, in class order.
        train: COCO JSON and image folder of the training set.
        val: COCO JSON and image folder of the validation set.
        title: First line of the docstring.
        command: The command that trains the model.
        init_checkpoint: Weights to start from: a file, or a name with a prefix such as mmdet://,
            in which case the model gets the settings of that implementation. None keeps the
            weights of the base config.
    """
    spec, why = MODELS[settings.model], settings.reasons
    name = re.sub(r"\W+", "_", folder.resolve().name).strip("_") or "project"
    low, high = settings.train_short_sides
    anchors = [[settings.anchor_scale * stride] for stride in spec.strides]
    lines = [
        f'"""{_plain(title)}',
        "",
        f"    {_plain(command)}",
        '"""',
        "",
        "from pathlib import Path",
        "",
        "from atss_d2 import get_config",
        "from atss_d2.data import register_coco",
        "",
        "_here = Path(__file__).resolve().parent",
        *_register(f"{name}_train", *(_path(folder, path) for path in train)),
        *_register(f"{name}_val", *(_path(folder, path) for path in val)),
        *_categories(categories),
        "",
        f'_cfg = get_config("{spec.config}")',
        "model, dataloader, train = _cfg.model, _cfg.dataloader, _cfg.train",
        "optimizer, lr_multiplier = _cfg.optimizer, _cfg.lr_multiplier",
        "",
        "model.num_classes = len(categories)",
        f'dataloader.train.dataset.names = "{name}_train"',
        f'dataloader.test.dataset.names = "{name}_val"',
        *_comment(why["short_side"]),
        f"dataloader.train.mapper.augmentations[0].update(short_edge_length=[{low}, {high}], "
        f"max_size={settings.train_max_size})",
        f"dataloader.test.mapper.augmentations[0].update(short_edge_length={settings.short_side}, "
        f"max_size={settings.max_size})",
        *_comment(why["anchor_scale"]),
        f"model.anchor_generator.sizes = {anchors}",
        *_comment(why["batch"]),
        f"dataloader.train.total_batch_size = {settings.batch}",
        f"optimizer.lr = {settings.lr:g}",
        *_comment(why["max_iter"]),
        f"train.max_iter = {settings.max_iter}",
        *_comment(why["eval_period"]),
        f"train.eval_period = train.checkpointer.period = {settings.eval_period}",
        'train.output_dir = str(_here / "output")',
    ]
    if isinstance(init_checkpoint, Path):
        lines.append(f"train.init_checkpoint = str({_path(folder, init_checkpoint)})")
    elif init_checkpoint is not None:
        convention = init_checkpoint.partition("://")[0]
        lines.append(f"train.init_checkpoint = {json.dumps(init_checkpoint, ensure_ascii=False)}")
        if convention in CONVENTIONS:
            lines += [
                f"# The settings of {CONVENTIONS[convention].title}, so that its weights fit",
                f'apply_convention(model, "{convention}")',
            ]
            lines.insert(
                lines.index("from atss_d2.data import register_coco"),
                "from atss_d2.checkpoint import apply_convention",
            )
    return "\n".join(lines) + "\n"


def _register(name: str, json_file: str, images: str) -> list[str]:
    line = f'register_coco("{name}", {json_file}, {images})'
    if len(line) <= _WIDTH:
        return [line]
    return ["register_coco(", f'    "{name}",', f"    {json_file},", f"    {images},", ")"]


def _path(folder: Path, path: Path) -> str:
    """Returns the source code of a path."""
    # Not resolved: a link stays a link, as its target may change.
    folder, path = Path(os.path.abspath(folder)), Path(os.path.abspath(path))
    if path == folder:
        return "_here"
    if path.is_relative_to(folder):
        return f"_here / {json.dumps(path.relative_to(folder).as_posix(), ensure_ascii=False)}"
    return f"Path({json.dumps(str(path), ensure_ascii=False)})"


def _plain(text: str) -> str:
    """Escapes text for a docstring."""
    return text.replace("\\", "\\\\").replace('"""', "'''")


def _comment(reason: str) -> list[str]:
    """Wraps a sentence into comment lines."""
    lines, line = [], "#"
    for word in (reason[:1].upper() + reason[1:]).split():
        if len(line) + 1 + len(word) > _WIDTH:
            lines.append(line)
            line = "#"
        line += f" {word}"
    return [*lines, line]


def _categories(categories: Categories) -> list[str]:
    """Returns lines with the original ids and the names, each line filled to the width."""
    entries = [f"{c['id']}: {json.dumps(c['name'], ensure_ascii=False)}" for c in categories]
    start, line = "categories = {", f"{', '.join(entries)}}}"
    if len(start) + len(line) <= _WIDTH:
        return [start + line]
    lines, line = [start], "   "
    for entry in entries:
        if len(line) + 2 + len(entry) > _WIDTH and line.strip():
            lines.append(line)
            line = "   "
        line += f" {entry},"
    return [*lines, line, "}"]
