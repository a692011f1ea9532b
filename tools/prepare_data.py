#!/usr/bin/env python
"""Prepares the embedded data below DETECTRON2_DATASETS (default: ./datasets).

    python tools/prepare_data.py             # everything
    python tools/prepare_data.py --shapes    # only the named parts

Existing data is kept, so a second run returns immediately.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also works in a checkout

from atss_d2.data import DataError, dataset_root, prepare_pretrained, prepare_shapes, prepare_trees

_PARTS = {"trees": prepare_trees, "pretrained": prepare_pretrained, "shapes": prepare_shapes}


def main(argv: list[str] | None = None) -> int:
    """Prepares the data and prints where it is; returns 1 if something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trees", action="store_true", help="photographs of tree crowns, tiled")
    parser.add_argument("--pretrained", action="store_true", help="MobileNetV2 ImageNet weights")
    parser.add_argument("--shapes", action="store_true", help="generated scenes")
    args = vars(parser.parse_args(argv))
    names = [name for name in _PARTS if args[name]] or list(_PARTS)
    for name in names:
        try:
            print(f"{name}: {_PARTS[name](dataset_root())}", flush=True)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
