"""Runs a training step again that stopped a run because a loss or the gradient was not finite.

    python tools/replay.py output/nonfinite_0000002

Prints the losses, the norm of the gradient, and the first module whose output, and gradient, are
not finite. With --dtype float32 one sees whether mixed precision is the reason. No code in the
folder is executed.
"""

from __future__ import annotations

import argparse
import math
import os
from typing import TYPE_CHECKING

from .errors import EXPECTED, Parser, fail

if TYPE_CHECKING:
    from ..engine import Replayed

_NORM = "norm of the gradient"
_DTYPES = ("float32", "bfloat16", "float16")


def get_parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="nonfinite_<iteration> in the output folder of the run")
    parser.add_argument("--device", default="cuda", help="without a GPU, the CPU (%(default)s)")
    parser.add_argument("--dtype", choices=_DTYPES, help="of the forward pass (that of the run)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command."""
    args = get_parser().parse_args(argv)
    # Must be imported before Detectron2: silences deprecation warnings raised by its import.
    import atss_d2  # noqa: F401

    # isort: split
    import torch

    from ..engine import replay
    from ..warning_filters import filter_third_party_warnings

    filter_third_party_warnings()
    dtype = getattr(torch, args.dtype) if args.dtype else None
    try:
        for step in replay(args.folder, device=args.device, dtype=dtype):
            print_step(step)
    except EXPECTED as error:
        fail(get_parser(), error)
    return 0


def print_step(step: Replayed) -> None:
    """Prints what happened in one process."""
    images = ", ".join(os.path.basename(name) for name in step.images)
    print(f"Iteration {step.iteration}, process {step.rank}: {images}")
    width = max(map(len, [*step.losses, _NORM]))
    print(f"  {'':{width}}  {'here':>12}  {'in the run':>12}")
    in_run = {**step.run_losses, _NORM: step.run_norm}
    for name, value in {**step.losses, _NORM: step.norm}.items():
        print(f"  {name:{width}}  {value:12.6g}  {in_run.get(name, math.nan):12.6g}")
    if step.output is not None:
        print(f"  first output that is not finite: of {step.output}")
    elif step.gradient is not None:
        print(f"  first gradient that is not finite: of the output of {step.gradient}")
    if step.parameters and step.output is None:
        more = f" and {len(step.parameters) - 3} more" if len(step.parameters) > 3 else ""
        print(f"  gradients that are not finite: of {', '.join(step.parameters[:3])}{more}")
    if not step.causes:
        print("  everything is finite here")
    for cause in step.causes:
        print(f"  - {cause}")
