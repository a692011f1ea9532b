#!/usr/bin/env python
"""Writes docs/yaml_keys.md from the comments and values of atss_d2/config/defaults.py."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PREFIXES = {"_C": "MODEL.ATSS", "_T": "MODEL.TORCHVISION"}
_HEAD = """# The yaml keys

`python tools/write_yaml_keys.py` makes this page from `atss_d2/config/defaults.py`, the keys that
`add_atss_config(cfg)` adds to a Detectron2 cfg. Backbone, anchors, solver and data use Detectron2's
own keys; the configs in `configs/yaml/` set the values of the paper.
"""
_TABLE = ["| key | default | meaning |", "|---|---|---|"]


def document() -> str:
    """Returns the text of the document."""
    lines, comment = [_HEAD], []
    source = (_ROOT / "atss_d2" / "config" / "defaults.py").read_text(encoding="utf-8")
    for line in map(str.strip, source.splitlines()):
        if title := re.fullmatch(r"# -+ (.*)", line):
            lines += [
                f"\n## {title[1][0].upper()}{title[1][1:]}\n",
                "| key | default | meaning |",
                "|---|---|---|",
            ]
            comment = []
        elif line.startswith("# "):
            comment.append(line[2:])
        elif (key := re.fullmatch(r"(_[CT])\.([\w.]+) = (.*)", line)) and key[3] != "CN()":
            name, default = f"{_PREFIXES[key[1]]}.{key[2]}", key[3].replace("|", "\\|")
            lines.append(f"| `{name}` | `{default}` | {' '.join(comment)} |")
            comment = []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (_ROOT / "docs" / "yaml_keys.md").write_text(document(), encoding="utf-8")
