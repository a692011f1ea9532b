"""Finds what is wrong with a data set: annotations, image files, training against validation.

    python tools/check_dataset.py --train train.json images --val val.json images
    python tools/check_dataset.py --config-file output/widgets/config.py --full
    python tools/check_dataset.py --train VOC_FOLDER --json > findings.json

A data set is a COCO JSON and its image folder, or a single folder: in Pascal VOC or YOLO format
(these need `pip install 'atss_d2[convert]'`), or with a COCO JSON in it. With --config-file it is
the data sets of a LazyConfig or a yaml config, which training checks as well before it starts.

Every finding has a count, examples and a fix. Errors stop training, or let it learn or measure
something wrong without notice; warnings may be meant. Nothing is changed: start_project writes
corrected copies.

Exit code: 0 if there are no errors, 1 if there are, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from .errors import EXPECTED, Parser, one_sentence, refuse

if TYPE_CHECKING:
    from ..data.checks.dataset import DataSet
    from ..data.checks.findings import Example, Report


def get_parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train",
        nargs="+",
        metavar="PATH",
        help="a COCO JSON and the folder of its images; or a folder",
    )
    parser.add_argument("--val", nargs="+", metavar="PATH", help="the same for validation")
    parser.add_argument(
        "--config-file", metavar="CONFIG", help="the data sets of a config, instead of paths"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="decode every pixel; default: headers, and whatever looks cut off",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit code 1 also if there are only warnings"
    )
    parser.add_argument(
        "--json", action="store_true", help="write the findings to standard output as JSON"
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="look at every file again, also those that have not changed since the last time",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="key=value",
        help="overrides of the config, last on the line; for yaml KEY VALUE",
    )
    return parser


def check_flags(args: argparse.Namespace) -> None:
    """Checks the flags.

    Raises:
        ValueError: Flags conflict or are missing.
    """
    if args.config_file and (args.train or args.val):
        raise ValueError("--config-file names its data sets: drop --train and --val")
    if not (args.config_file or args.train or args.val):
        raise ValueError(
            "which data set? Give --train PATH [PATH], --val likewise, or --config-file"
        )
    if args.opts and not args.config_file:
        raise ValueError("--opts overrides a config: give --config-file")
    for flag, paths in (("--train", args.train), ("--val", args.val)):
        if paths and len(paths) > 2:
            raise ValueError(f"{flag} takes a JSON file and a folder, not {len(paths)} paths")


def check_paths(args: argparse.Namespace) -> list[DataSet]:
    """Checks the data sets of ``--train`` and ``--val``."""
    from ..data.checks.dataset import check_together

    found = {}
    for role, paths in (("train", args.train), ("val", args.val)):
        if paths:
            found[role] = _check_source(paths, role, args)
    if len(found) == 2:
        check_together(found["train"], found["val"])
    return list(found.values())


def _check_source(paths: list[str], role: str, args: argparse.Namespace) -> DataSet:
    from pathlib import Path

    from ..data import DataError
    from ..data.checks.dataset import DataSet, check_coco, check_coco_file
    from ..data.checks.findings import Report
    from ..data.checks.json_file import JsonContent
    from ..data.custom.reading import read_source

    first, *rest = (Path(path).expanduser() for path in paths)
    if first.is_file() and rest and rest[0].is_dir():
        dataset = check_coco_file(str(first), str(rest[0]), role=role, cache=not args.no_cache)
    else:
        try:
            source = read_source(paths)
        except DataError as error:
            if not first.is_dir():  # the command line is wrong, not the data
                raise
            report = Report(str(first), role)
            report.say("json", str(error))
            return DataSet(report)
        content = JsonContent(source.content, source.has_byte_order_mark)
        json_file = str(source.json_file) if source.json_file else None
        dataset = check_coco(content, json_file, str(source.image_root), role=role)
    dataset.look_at_files(full=args.full, cache=not args.no_cache)
    return dataset


def check_config_file(args: argparse.Namespace) -> list[DataSet]:
    """Checks the data sets of ``--config-file``.

    Raises:
        ValueError: The config cannot be used, or its data sets are not there.
    """
    from ..config import find_config, load_config, view_of
    from ..data import DataError
    from ..engine import check_categories, check_dataset_files
    from ..engine.dataset_checks import check_config

    view = view_of(load_config(find_config(args.config_file)))
    view.apply(args.opts)
    try:
        check_dataset_files(view.cfg, with_training=True)
    except DataError as error:
        raise ValueError(str(error)) from None
    datasets = check_config(view.cfg, full=args.full, cache=not args.no_cache)
    if datasets and not any(x.report.errors for x in datasets):
        try:
            check_categories(view.cfg)  # against the model
        except ValueError as error:
            datasets[0].report.say("categories_differ", one_sentence(error))
    return datasets


def describe(report: Report) -> str:
    """Returns the findings about a data set as lines of text, errors first."""
    counts = ", ".join(f"{n} {name}" for name, n in report.counts.items())
    lines = [f"{'training' if report.role == 'train' else 'validation'}: {report.place}"]
    lines += [f"  {counts}"] if counts else []
    for finding in (*report.errors, *report.warnings):
        lines.append(f"  {finding.severity}: {finding} [{finding.code}]")
    if not report.findings:
        lines.append("  nothing is wrong")
    return "\n".join(lines)


def as_json(datasets: list[DataSet]) -> str:
    """Returns the findings as JSON."""
    content = {
        "version": 1,
        "num_errors": sum(len(x.report.errors) for x in datasets),
        "num_warnings": sum(len(x.report.warnings) for x in datasets),
        "data_sets": [
            {
                "role": x.report.role,
                "place": x.report.place,
                "json_file": x.json_file,
                "image_root": x.image_root,
                "counts": x.report.counts,
                "findings": [
                    {
                        "code": finding.code,
                        "severity": finding.severity,
                        "count": finding.count,
                        "what": finding.phrase,
                        "examples": list(map(_example, finding.examples)),
                        "fix": finding.action,
                    }
                    for finding in (*x.report.errors, *x.report.warnings)
                ],
            }
            for x in datasets
        ],
    }
    return json.dumps(content, indent=2)


def _example(example: Example) -> dict[str, Any]:
    found = {
        "text": example.text,
        "file": example.file,
        "image_id": example.image_id,
        "annotation_id": example.annotation_id,
        "value": example.value,
    }
    # Not every reader of JSON takes NaN, and values may be of any type.
    return {key: _plain(value) for key, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value


def run(args: argparse.Namespace) -> int:
    """Checks the data sets and prints the findings.

    Returns:
        The exit code.

    Raises:
        ValueError, DataError: Flags conflict, or there is no such data set.
    """
    check_flags(args)
    datasets = check_config_file(args) if args.config_file else check_paths(args)
    if not datasets:
        raise ValueError(f"'{args.config_file}' has no data sets that can be checked")
    num_errors = sum(len(x.report.errors) for x in datasets)
    num_warnings = sum(len(x.report.warnings) for x in datasets)
    if args.json:
        print(as_json(datasets))
    else:
        for x in datasets:
            print(f"{describe(x.report)}\n")
        print(f"{num_errors} kinds of errors, {num_warnings} kinds of warnings")
    return int(num_errors > 0 or (args.strict and num_warnings > 0))


def main(argv: list[str] | None = None) -> int:
    """Runs the command; reports wrong arguments in one sentence."""
    parser = get_parser()
    args = parser.parse_args(argv)
    from ..data import DataError
    from ..warning_filters import filter_third_party_warnings

    filter_third_party_warnings()
    try:
        return run(args)
    except (*EXPECTED, DataError) as error:
        refuse(parser, error)


if __name__ == "__main__":
    sys.exit(main())
