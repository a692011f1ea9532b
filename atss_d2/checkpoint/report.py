"""Reports what a conversion did with every key, and the config that its weights need."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from tabulate import tabulate

from ..modeling.box_coding import PointDistances
from .architecture import Architecture, ConfigChange
from .conventions import get_convention

# What may happen to a key. The last three are reasons to refuse a file.
STATUSES = ("renamed", "changed", "left", "missing", "unexpected", "misshapen")
_NUM_NAMED = 5  # keys that a sentence names
_STRIDES = "model.backbone.backbone.bottom_up.stages.stride_in_1x1=True"


class KeyReport(NamedTuple):
    """What happened to one key.

    Attributes:
        status: ``"renamed"``: another name, the same value; ``"changed"``: its value is changed,
            too; ``"left"``: not a weight; ``"missing"``: only the model has it; ``"unexpected"``:
            only the file has it; ``"misshapen"``: its shape differs.
        theirs: Name in the file, if it is there.
        ours: Name in the model, if it is there.
        shape: Shape in the file; for a missing key, in the model.
        note: What was changed, or why.
    """

    status: str
    theirs: str | None
    ours: str | None
    shape: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        convention: ``"authors"`` or ``"mmdet"``.
        keys: What happened to each key of the file, in file order; then the missing ones.
        architecture: The model that the weights describe, or None if a model to convert for was
            given.
    """

    convention: str
    keys: Sequence[KeyReport]
    architecture: Architecture | None = None

    def count(self, *statuses: str) -> int:
        """Counts the keys that have one of these statuses."""
        return sum(key.status in statuses for key in self.keys)

    def from_points(self) -> ConversionReport:
        """Returns this report for a model that regresses from points, which weights cannot show."""
        if self.architecture is None:
            return self
        settings = {**self.architecture.settings, "box2box_transform._target_": PointDistances}
        return replace(self, architecture=replace(self.architecture, settings=settings))

    @property
    def changes(self) -> list[ConfigChange]:
        """Keys whose values differ from the nearest of our configs, ``architecture.config``."""
        return [] if self.architecture is None else self.architecture.changes(self.convention)

    @property
    def overrides(self) -> list[str]:
        """The changes as ``key=value`` overrides of the command line."""
        return overrides({key: needed for key, _, needed in self.changes})

    def key_table(self, statuses: Collection[str] = STATUSES) -> str:
        """Returns a table of the keys with these statuses."""
        rows = [
            (key.status, key.theirs or "", key.ours or "", format_shape(key.shape), key.note)
            for key in self.keys
            if key.status in statuses
        ]
        headers = ("", "in the file", "in the model", "shape", "")
        return tabulate(rows, headers=headers, disable_numparse=True)

    def config_table(self) -> str:
        """Returns a table of the keys whose values differ from the nearest config."""
        rows = [
            (f"model.{key}", _on_command_line(value), _on_command_line(needed))
            for key, value, needed in self.changes
        ]
        config = "" if self.architecture is None else self.architecture.config
        return tabulate(rows, headers=("key", config, "needed"), disable_numparse=True)

    def summary(self) -> str:
        """Returns the numbers of keys, in one sentence."""
        matched = self.count("renamed", "changed")
        total = matched + self.count("missing", "misshapen")
        reasons = sorted({key.note for key in self.keys if key.status == "left"})
        return (
            f"{matched} of the {total} keys of the model found in a file of "
            f"{get_convention(self.convention).title}: {self.count('renamed')} renamed, "
            f"{self.count('changed')} changed as well; {self.count('missing')} missing; "
            f"{self.count('left')} left" + (f" ({', '.join(reasons)})" if reasons else "")
        )

    @property
    def note(self) -> str:
        """What the convention sets wrongly for these weights; empty if nothing is known."""
        model = self.architecture
        if self.convention != "mmdet" or model is None or "dyhead" not in model.config:
            return ""
        if model.settings.get("head.pred_kernel_size", 1) != 1:
            return ""
        keys = f"model.backbone.size_divisibility=128 model.anchor_generator.offset=0.5 {_STRIDES}"
        return (
            "1x1 predictors are those of mmdetection's second model with DyHead, for which these "
            f"settings are wrong. It needs {keys} model.pixel_mean=[103.53,116.28,123.675] "
            "model.pixel_std=[1,1,1] model.input_format=BGR"
        )

    def __str__(self) -> str:
        return f"{self.summary()}. {self.note}" if self.note else self.summary()

    def refusal(self) -> str:
        """Returns why the file does not fit: the first keys that differ; empty if it fits."""
        sentences = {
            "missing": "of the model not in the file",
            "unexpected": "of the file not in the model",
            "misshapen": "of other shapes",
        }
        parts = []
        for status, sentence in sentences.items():
            keys = [key for key in self.keys if key.status == status]
            if keys:
                names = ", ".join(_describe(key) for key in keys[:_NUM_NAMED])
                more = f" and {len(keys) - _NUM_NAMED} more" if len(keys) > _NUM_NAMED else ""
                parts.append(f"{len(keys)} {sentence}: {names}{more}")
        return "; ".join(parts)

    def metadata(self) -> dict[str, str]:
        """Returns the metadata for a file of the converted weights."""
        config = {} if self.architecture is None else {"config": self.architecture.config}
        return {
            "converted_from": get_convention(self.convention).title,
            "convention": self.convention,
            **config,
            "overrides": json.dumps(self.overrides),
            "left": json.dumps([key.theirs for key in self.keys if key.status == "left"]),
        }


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Formats keys below ``model`` and their values as ``key=value``."""
    return [f"model.{key}={_on_command_line(value)}" for key, value in settings.items()]


def _describe(key: KeyReport) -> str:
    name = key.theirs or key.ours
    return f"{name} {format_shape(key.shape)}" + (f" ({key.note})" if key.note else "")


def format_shape(shape: Sequence[int]) -> str:
    """Formats a shape for tables."""
    return "x".join(map(str, shape)) if shape else "()"


def _on_command_line(value: Any) -> str:
    """Formats a value in the grammar of overrides."""
    if isinstance(value, type) or callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if OmegaConf.is_list(value) or isinstance(value, (list, tuple)):
        return f"[{','.join(map(_on_command_line, value))}]"
    return str(value)
