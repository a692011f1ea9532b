r"""Exports a trained model to a file that runs without this package.

    python tools/export_model.py --config-file configs/demo/atss_mobilenetv2_trees.py \
        --format onnx --output output/export train.init_checkpoint=output/demo/model_final.pth

Flags are those of Detectron2's tools/deploy/export_model.py. Put them before the overrides:
key=value for a LazyConfig, KEY VALUE for yaml. --run-eval evaluates first the model and then the
file on the config's test set. docs/deployment.md says what each format can do.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import EXPECTED, Parser, refuse

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from omegaconf import DictConfig
    from torch import Tensor, nn

    from ..predictor import Predictor


class Format(NamedTuple):
    """The exporter and the file name of a value of --format."""

    export: str  # name of a function of atss_d2.export
    file_name: str


FORMATS = {
    "torchscript": Format("export_torchscript", "model.ts"),
    "onnx": Format("export_onnx", "model.onnx"),
    "pt2": Format("export_pt2", "model.pt2"),
    "aot_inductor": Format("export_aot_inductor", "model_aot.pt2"),
}
METHODS = ("tracing", "scripting")  # of atss_d2.export.torchscript
DTYPES = ("float32", "float16", "bfloat16")
_PHOTOGRAPH = (480, 640)  # height and width of the image used as a sample


def get_parser() -> argparse.ArgumentParser:
    """Returns the parser; flags have the names of Detectron2's tool."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="a .py or .yaml config, or its name")
    parser.add_argument("--format", choices=FORMATS, default="torchscript")
    parser.add_argument(
        "--export-method",
        choices=METHODS,
        default="tracing",
        help="scripting is for torchscript only (default: %(default)s)",
    )
    parser.add_argument(
        "--sample-image", help="image to trace with; default: noise of the size of test images"
    )
    parser.add_argument("--run-eval", action="store_true", help="evaluate the model and the file")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/export"),
        help="folder for model.ts, model.onnx, model.pt2 or model_aot.pt2, or the file itself "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--no-nms", action="store_true", help="the file gives candidates, for an NMS elsewhere"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of backbone and head (%(default)s)"
    )
    parser.add_argument("--opset", type=int, help="of onnx; default: 20")
    parser.add_argument("--int8", action="store_true", help="onnx: dynamic quantization")
    parser.add_argument(
        "overrides",
        nargs=argparse.REMAINDER,
        metavar="key=value",
        help="of the config, such as train.init_checkpoint=FILE; for yaml KEY VALUE",
    )
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Checks that the flags fit together.

    Raises:
        ValueError: Flags conflict; the message names them.
    """
    if args.format != "torchscript" and args.export_method == "scripting":
        raise ValueError(
            f"--export-method scripting is for --format torchscript, not for {args.format}, which "
            "is made by torch.export: leave --export-method out"
        )
    for flag, value in (("--opset", args.opset), ("--int8", args.int8 or None)):
        if value is not None and args.format != "onnx":
            raise ValueError(f"{flag} is for --format onnx, not for {args.format}: leave it out")
    if args.int8 and args.dtype != "float32":
        raise ValueError(
            f"--int8 quantizes a float32 model, not one of --dtype {args.dtype}: give one of them"
        )
    path = output_path(args)
    if path.parent.is_file():
        raise ValueError(
            f"--output '{args.output}' is a file: give a folder, or a name that ends in "
            f"{path.suffix}"
        )
    if args.sample_image and not os.path.isfile(args.sample_image):
        raise ValueError(f"there is no image --sample-image '{args.sample_image}'")
    if args.format == "onnx":
        from ..export.checks import import_optional

        runs_it = args.run_eval or args.int8
        for package in ("onnx", "onnxscript", *(["onnxruntime"] if runs_it else [])):
            import_optional(package)


def output_path(args: argparse.Namespace) -> Path:
    """Returns the file to write: ``--output`` itself or, in that folder, one of the usual name."""
    file_name = FORMATS[args.format].file_name
    is_file = args.output.suffix == Path(file_name).suffix and not args.output.is_dir()
    return args.output if is_file else args.output / file_name


def setup(args: argparse.Namespace) -> DictConfig | CfgNode:
    """Loads the config and applies the overrides."""
    from ..config import find_config, load_view
    from ..engine import check_checkpoint

    args.config_file = find_config(args.config_file)
    view = load_view(args.config_file, args.overrides)
    if args.run_eval and view.evaluation_lacks:
        raise ValueError(f"--run-eval: the config has no {view.evaluation_lacks}")
    check_checkpoint(view.weights, for_use=True)
    return view.cfg


def make_sample(predictor: Predictor, path: str | None) -> Tensor:
    """Returns an image (1, 3, H, W) as the model receives it: from a file, or noise."""
    import numpy as np

    if path is None:
        generator = np.random.default_rng(0)
        image = generator.integers(0, 256, (*_PHOTOGRAPH, 3), dtype=np.uint8)
    else:
        image = path
    return predictor.prepare(image)["image"][None]


def export(predictor: Predictor, args: argparse.Namespace) -> Path:
    """Writes the file that the flags describe."""
    import torch

    from .. import export as exporters
    from ..export import Metadata, quantize_onnx, resizing_of
    from ..export.checks import check_exportable

    check_exportable(predictor.model)  # before anything asks for what only an ATSS has
    options: dict[str, Any] = {"with_nms": not args.no_nms, "dtype": getattr(torch, args.dtype)}
    if args.format == "torchscript":
        options["method"] = args.export_method
    if args.opset is not None:
        options["opset"] = args.opset
    metadata = Metadata.from_model(
        predictor.model,
        class_names=predictor.class_names,
        category_ids=[category["id"] for category in predictor.categories],
        config=os.path.basename(args.config_file),
        **resizing_of(predictor.augmentations),
    )
    sample = make_sample(predictor, args.sample_image)
    write = functools.partial(
        getattr(exporters, FORMATS[args.format].export),
        predictor.model,
        sample,
        metadata=metadata,
        **options,
    )
    if not args.int8:
        return write(output_path(args))
    with tempfile.TemporaryDirectory() as folder:
        return quantize_onnx(write(Path(folder) / "float32.onnx"), output_path(args))


def evaluate_lazy(cfg: DictConfig, model: nn.Module, folder: Path) -> dict[str, float]:
    """Evaluates as train_net.py does, and returns the box metrics."""
    from ..engine import do_test

    if "output_dir" in cfg.dataloader.evaluator:
        cfg.dataloader.evaluator.output_dir = str(folder)
    return do_test(cfg, model)["bbox"]


def evaluate_yaml(cfg: CfgNode, model: nn.Module, folder: Path) -> dict[str, float]:
    """Evaluates a yaml config, and returns the box metrics of its first test set."""
    from ..engine import Trainer
    from ..engine.evaluation import build_evaluator

    evaluators = [build_evaluator(name, str(folder)) for name in cfg.DATASETS.TEST]
    results = Trainer.test(cfg, model, evaluators)
    return (results if "bbox" in results else next(iter(results.values())))["bbox"]


def compare(cfg: DictConfig | CfgNode, model: nn.Module, path: Path) -> None:
    """Evaluates the model and the file, and prints both results."""
    from tabulate import tabulate

    from ..config import by_kind
    from ..export import ExportedModel, load_exported

    columns = {}
    evaluate = by_kind(cfg, lazy=evaluate_lazy, yaml=evaluate_yaml)
    options = {} if path.suffix == ".onnx" else {"device": str(model.device)}
    exported = ExportedModel(load_exported(path, **options))
    for name, evaluated in (("model", model), ("file", exported)):
        print(f"Evaluating the {name} ...", flush=True)
        start = time.perf_counter()
        columns[name] = evaluate(cfg, evaluated, path.parent / "inference" / path.name / name)
        print(f"... took {time.perf_counter() - start:.1f} s", flush=True)
    rows = [
        (metric, value, columns["file"][metric], columns["file"][metric] - value)
        for metric, value in columns["model"].items()
    ]
    headers = ("", "model", path.name, "difference")
    print(tabulate(rows, headers, floatfmt=("", ".4f", ".4f", "+.6f")))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; exits with 2 if the export is impossible."""
    parser = get_parser()
    args = parser.parse_args(argv)
    # Must be imported before Detectron2: silences deprecation warnings raised by its import.
    from ..predictor import Predictor

    # isort: split
    from detectron2.utils.logger import setup_logger

    from ..warning_filters import filter_third_party_warnings

    filter_third_party_warnings()
    try:
        check_flags(args)
        cfg = setup(args)
        for name in ("atss_d2", "detectron2", "fvcore"):
            setup_logger(name=name)
        predictor = Predictor(cfg)
        path = export(predictor, args)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        if args.run_eval:
            compare(cfg, predictor.model, path)
    except (*EXPECTED, RuntimeError) as error:
        refuse(parser, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
