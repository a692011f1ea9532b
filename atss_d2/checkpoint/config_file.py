"""Writes the LazyConfig of converted weights."""

from __future__ import annotations

from pathlib import Path

from ..plain.files import replacing
from .conventions import get_convention
from .mmdet_heads import MMDET_HEADS
from .report import ConversionReport, overrides

__all__ = ["write_config"]

_CONFIG = """\
\"\"\"{detector} with the weights beside this file, converted from {title}.

    python train_net.py --config-file THIS_FILE --eval-only
\"\"\"

from pathlib import Path

from atss_d2 import get_config
from atss_d2.checkpoint import apply_convention
from atss_d2.engine import apply_overrides

_cfg = get_config("{base}")
apply_overrides(_cfg, [{overrides}])
apply_convention(_cfg, convention="{convention}")
_cfg.train.init_checkpoint = str(Path(__file__).resolve().with_name({weights!r}))

dataloader, lr_multiplier, model, optimizer, train = (
    _cfg[key] for key in ("dataloader", "lr_multiplier", "model", "optimizer", "train")
)
"""


def write_config(weights: Path, report: ConversionReport) -> Path:
    """Writes a config beside converted weights that builds their model and loads them.

    Args:
        weights: File of the weights.
        report: Report of their conversion.

    Returns:
        Path of the config: that of the weights, with the suffix ``.py``.
    """
    path = weights.with_suffix(".py")
    lines = overrides(report.architecture.settings)
    text = _CONFIG.format(
        weights=weights.name,
        detector=MMDET_HEADS[report.architecture.detector].title,
        title=get_convention(report.convention).title,
        base=report.architecture.config,
        overrides="".join(f"\n    {line!r}," for line in lines) + ("\n" if lines else ""),
        convention=report.convention,
    )
    with replacing(path) as temporary:
        temporary.write_text(text)
    return path
