"""Runs a changed data set through check-dataset and through the start of a training."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig

from atss_d2.commands import check_dataset
from atss_d2.commands.errors import one_sentence
from atss_d2.data import DataError, register_coco
from atss_d2.engine import check_categories, check_dataset_files
from atss_d2.engine.data_check import explained
from atss_d2.engine.dataset_checks import check_data
from atss_d2.engine.datasets import load_test_set
from atss_d2.engine.evaluator_check import check_config_evaluator
from atss_d2.engine.train_loader import instantiate_train_loader
from tests import toy
from tests.data.cases import FINE, STOPS, WARNS, Sample


def check(sample: Sample, *flags: str) -> tuple[str, str, dict]:
    """Runs ``check-dataset`` in this process.

    Returns:
        The outcome, the sentences on one line each, and the JSON.
    """
    paths = [str(sample.json_file("train")), str(sample.folder / "train")]
    val = [str(sample.json_file("val")), str(sample.folder / "val")]
    arguments = ["--train", *paths, "--val", *val, "--json", "--no-cache", *flags]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = check_dataset.main(arguments)
    content = json.loads(printed.getvalue())
    assert code == int(content["num_errors"] > 0)
    # As printed without --json.
    texts = []
    for dataset in content["data_sets"]:
        for finding in dataset["findings"]:
            examples = ", ".join(example["text"] for example in finding["examples"])
            texts.append(f"{finding['what']}, e.g. {examples}: {finding['fix']}")
    outcome = STOPS if code else WARNS if content["num_warnings"] else FINE
    return outcome, "\n".join(texts), content


@functools.cache
def _toy_config() -> DictConfig:
    return toy.config(Path("output"), **{"train.max_iter": 1, "train.eval_period": 1})


def config(sample: Sample, names: dict[str, str]) -> DictConfig:
    """The toy's config for the sample, registered under the names."""
    cfg = _toy_config()
    cfg.pop("categories", None)  # found in an earlier sample
    cfg.train.output_dir = str(sample.folder / "output")
    cfg.dataloader.train.dataset.names = names["train"]
    cfg.dataloader.test.dataset.names = names["val"]
    for part, name in names.items():
        register_coco(name, sample.json_file(part), sample.folder / part)
    return cfg


@contextlib.contextmanager
def registered(sample: Sample) -> Iterator[DictConfig]:
    """Yields a config of the sample, which is registered meanwhile."""
    names = {part: f"case_{part}" for part in ("train", "val")}
    try:
        yield config(sample, names)
    finally:
        for name in names.values():
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def start_training(sample: Sample) -> tuple[str, str, list[dict]]:
    """Does everything that ``train_net.py`` does before the first iteration, but for the model.

    Returns:
        The outcome, the sentence or the warnings, and the dicts of the first epoch's images as the
        mapper returns them.

    Raises:
        Exception: Any other than those that the command turns into a sentence.
    """
    handler, inputs = _Warnings(), []
    loggers = [logging.getLogger(name) for name in ("atss_d2", "detectron2")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with registered(sample) as cfg, contextlib.redirect_stdout(io.StringIO()):
            try:
                check_dataset_files(cfg, with_training=True)
                check_categories(cfg)
            except (ValueError, DataError) as error:
                return STOPS, one_sentence(error), []
            try:
                check_data(cfg)
                dataset, mapper = load_test_set(cfg)
                check_config_evaluator(cfg, dataset)
                with explained(cfg, "train"):
                    instantiate_train_loader(cfg.dataloader.train, seed=0)
                inputs = [mapper(x) for x in dataset]
                train_mapper = instantiate(cfg.dataloader.train.mapper)
                dicts = instantiate(cfg.dataloader.train.dataset)
                inputs = [train_mapper(x) for x in dicts]
            except DataError as error:
                return STOPS, one_sentence(error), []
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    ours = [text for text in handler.texts if "Category ids in annotations" not in text]
    return (WARNS if ours else FINE), "\n".join(ours), inputs


def write_config(sample: Sample, path: Path) -> None:
    """Writes a config file for ``train_net.py``."""
    path.write_text(
        "from pathlib import Path\n\nfrom tests import toy\n"
        "from atss_d2.data import register_coco\n\n"
        f"folder = Path({str(sample.folder)!r})\n"
        "for part in ('train', 'val'):\n"
        "    register_coco(f'case_{part}', folder / f'{part}.json', folder / part)\n"
        "_cfg = toy.config(folder / 'output', **{'train.max_iter': 2, 'train.eval_period': 2})\n"
        "_cfg.dataloader.train.dataset.names = 'case_train'\n"
        "_cfg.dataloader.test.dataset.names = 'case_val'\n"
        f"{', '.join(toy.KEYS)} = (_cfg[key] for key in toy.KEYS)\n"
    )
