"""Checks the data sets of a config before the first iteration, once for all processes."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeVar

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig

from ..config import by_kind, target_of, view_of
from ..data import DataError
from ..data.checks.dataset import DataSet, check_coco_file, check_dicts, check_together
from ..data.checks.findings import Finding, Report
from ..data.children import call_in_children, can_fork
from .bad_images import BadImages
from .data_check import explained
from .rng import preserved_rng

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_MAX_SAID = 3  # errors in the sentence that ends a run
_MAX_WARNINGS = 5  # of a data set
_SHOWS_ALL = "python tools/check_dataset.py --config-file CONFIG shows all"
# What only Detectron2's own mapper would stumble upon, and what train.on_bad_image="skip" skips.
_OF_ITS_MAPPER = re.compile("(box|crowd)_")
_SKIPPED = re.compile(
    "image_(missing|no_file|forbidden|empty|html|lfs|truncated|unreadable|size|bomb)$"
)
# Functions that read nothing else than a JSON in COCO's format.
_COCO_READERS = ("detectron2.data.datasets.coco", "atss_d2.data.registration")


def check_data(cfg: DictConfig | CfgNode, *, own_loaders: Collection[str] = ()) -> None:
    """Checks training and test sets, their annotations and files, before anything is trained.

    The first process does, and the others wait for it. Warnings are logged. ``train.check_data``
    (yaml: ``MODEL.ATSS.CHECK_DATA``) turns it off.

    Args:
        cfg: A config of either kind.
        own_loaders: Splits, of "train" and "test", that are not read by Detectron2's mapper.

    Raises:
        DataError: A data set has errors; the message has the first of them. Raised in all
            processes.
    """
    key = by_kind(cfg, lazy="train.check_data", yaml="MODEL.ATSS.CHECK_DATA")
    if view_of(cfg).get(key) is False:
        return

    def check() -> _Checked:
        return _check(cfg, own_loaders)

    if can_fork():  # the memory of a parsed JSON is then gone before the training starts
        checked = call_in_children([0], check, "checks the data sets")[0]
    else:
        checked = on_first_process(check)
    if comm.is_main_process():
        for level, text in checked.messages:
            logger.log(level, text)
    if checked.error is not None:
        raise DataError(checked.error)


def on_first_process(function: Callable[[], _Result]) -> _Result:
    """Runs a function in the first process and returns its result in all of them.

    Raises:
        DataError: The function raised something; the same error in all processes.
    """
    outcome: tuple[bool, Any] = True, None
    if comm.is_main_process():
        try:
            with preserved_rng():  # functions of data sets may draw random numbers
                outcome = True, function()
        except DataError as error:
            outcome = False, str(error)
        except Exception as error:  # the other processes must not wait for ever
            logger.debug("Checking the data failed", exc_info=True)
            outcome = False, str(_failed(error))
    is_fine, result = comm.all_gather(outcome)[0]
    if not is_fine:
        raise DataError(result)
    return result


def _failed(error: Exception) -> DataError:
    return DataError(f"checking the data failed: {type(error).__name__}: {error}")


class _Checked(NamedTuple):
    """What to log about the data sets, as (level, text), and the sentence that ends the run."""

    messages: list[tuple[int, str]]
    error: str | None = None


def _check(cfg: DictConfig | CfgNode, own_loaders: Collection[str]) -> _Checked:
    start = time.perf_counter()
    try:
        datasets = check_config(cfg, own_loaders=own_loaders)
    except DataError:
        raise
    except Exception as error:
        raise _failed(error) from error
    messages = [(logging.WARNING, text) for x in datasets for text in _warnings(x.report)]
    sentences = [sentence_of(x.report) for x in datasets if x.report.errors]
    if sentences:
        return _Checked(messages, f"{'; '.join(sentences[:2])} ({_SHOWS_ALL})")
    num = sum(len(x.probes) for x in datasets)
    names = ", ".join(f"'{x.report.place}'" for x in datasets)
    seconds = time.perf_counter() - start
    messages.append((logging.INFO, f"Checked {names}: {num} images, in {seconds:.1f} s"))
    return _Checked(messages)


def _warnings(report: Report) -> list[str]:
    """Returns the first warnings about a data set."""
    shown = report.warnings[:_MAX_WARNINGS]
    texts = [f"'{report.place}': {finding}" for finding in shown]
    if len(report.warnings) > len(shown):
        more = len(report.warnings) - len(shown)
        texts.append(f"'{report.place}': {more} more kinds of warnings ({_SHOWS_ALL})")
    return texts


def sentence_of(report: Report) -> str:
    """Returns the errors of a data set in one sentence."""
    errors = [str(finding) for finding in report.errors]
    text = "; ".join(errors[:_MAX_SAID])
    if len(errors) > _MAX_SAID:
        text += f"; and {len(errors) - _MAX_SAID} more kinds of errors"
    if report.place in text:
        return text
    return f"the {'training' if report.role == 'train' else 'test'} set '{report.place}': {text}"


def check_config(
    cfg: DictConfig | CfgNode,
    *,
    own_loaders: Collection[str] = (),
    full: bool = False,
    cache: bool = True,
) -> list[DataSet]:
    """Checks all data sets of a config by name, the training sets first.

    Data sets of an own class are not checked, and neither are the files and boxes of those that a
    mapper reads that is not Detectron2's ``DatasetMapper``.

    Args:
        cfg: A config of either kind.
        own_loaders: As for :func:`check_data`.
        full: Decode all pixels.
        cache: Remember the results in the user's cache folder.

    Returns:
        The data sets. One that is used for training and testing is there twice.
    """
    view = view_of(cfg)
    found: dict[str, list[DataSet]] = {"train": [], "val": []}
    for split, role in (("train", "train"), ("test", "val")):
        has_mapper = by_kind(cfg, lazy=_has_usual_mapper, yaml=lambda *_: True)(cfg, split)
        for name in view.dataset_names(split):
            dataset = _check_registered(name, cfg, split, role=role, cache=cache)
            if dataset is None:
                continue
            if has_mapper and split not in own_loaders:
                dataset.look_at_files(full=full, cache=cache)
                if role == "train" and BadImages.from_config(cfg).skips:
                    _soften(dataset.report, _SKIPPED)
            else:
                _soften(dataset.report, _OF_ITS_MAPPER)
            found[role].append(dataset)
    for train in found["train"]:
        check_together(train, *found["val"])
    return [*found["train"], *found["val"]]


def _has_usual_mapper(cfg: DictConfig, split: str) -> bool:
    mapper = view_of(cfg).get(f"dataloader.{split}.mapper")
    target = target_of(mapper) if isinstance(mapper, DictConfig) else None
    return isinstance(target, type) and issubclass(target, DatasetMapper)


def _soften(report: Report, codes: re.Pattern) -> None:
    """Makes warnings of errors that this training does not stumble upon."""
    report.findings = [
        Finding(x.code, "warning", x.count, x.examples, x.action, x.what)
        if codes.match(x.code)
        else x
        for x in report.findings
    ]


def is_coco_file(name: str) -> bool:
    """Returns whether a data set is what its JSON file in COCO's format says, and no more."""
    metadata, reader = MetadataCatalog.get(name), DatasetCatalog[name]
    is_plain = getattr(reader, "__module__", "") in _COCO_READERS
    return is_plain and bool(metadata.get("json_file")) and metadata.get("evaluator_type") == "coco"


def _check_registered(
    name: str, cfg: DictConfig | CfgNode, split: str, *, role: str, cache: bool
) -> DataSet | None:
    """Checks a data set by name; None if it is not made of dicts."""
    if name not in DatasetCatalog:
        raise DataError(f"there is no data set '{name}'")
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    if is_coco_file(name) and image_root:
        local = PathManager.get_local_path(json_file)
        return check_coco_file(local, str(image_root), role=role, cache=cache)
    with explained(cfg, split):
        dicts = DatasetCatalog.get(name)
    if not isinstance(dicts, list) or not dicts or not isinstance(dicts[0], dict):
        return None
    num_classes = len(metadata.get("thing_classes", ())) or None
    return check_dicts(dicts, name, role=role, num_classes=num_classes)
