"""Data sets are checked before the first iteration: what is refused, and what must not be."""

import copy
import functools
import multiprocessing

import pytest
import torch.distributed
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils import comm
from omegaconf import OmegaConf

from atss_d2.config import ConfigError
from atss_d2.data import DataError
from atss_d2.data.children import can_fork
from atss_d2.engine import do_train
from atss_d2.engine.dataset_checks import check_data, on_first_process
from atss_d2.engine.datasets import load_test_set
from atss_d2.engine.evaluator_check import check_config_evaluator
from tests import toy
from tests.data.cases import Sample
from tests.data.trying import registered


@pytest.fixture
def sample(tmp_path):
    return Sample(tmp_path / "sample")


class OwnMapper:
    """Reads whatever it wants."""

    def __call__(self, x):
        return x


class OwnEvaluator(DatasetEvaluator):
    def process(self, inputs, outputs):
        raise AssertionError("an evaluator of one's own is not fed")


class Unusable(COCOEvaluator):
    def __init__(self, *args, **kwargs):
        raise ImportError("No module named 'some_library'")


def spoil(sample):
    sample.content["train"]["annotations"][0]["bbox"] = [1, 2, 3, 4, 30]
    sample.file("train", 1).unlink()


def test_an_own_mapper_may_read_anything(sample):
    spoil(sample)
    sample.write()
    with registered(sample) as cfg:
        with pytest.raises(DataError, match="1 box is not four .*; 1 image is missing"):
            check_data(cfg)
        usual = cfg.dataloader.train.mapper._target_
        cfg.dataloader.train.mapper._target_ = OwnMapper
        try:
            check_data(cfg)
        finally:
            cfg.dataloader.train.mapper._target_ = usual


def test_it_can_be_turned_off(sample, monkeypatch):
    spoil(sample)
    sample.write()
    with registered(sample) as cfg:
        monkeypatch.setitem(cfg.train, "check_data", False)
        check_data(cfg)
        monkeypatch.delitem(cfg.train, "check_data")  # as in configs saved by earlier versions
        with pytest.raises(DataError):
            check_data(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.hooks", [1], "train.hooks must be a list"),
        ("train.freeze", ["nothing"], "train.freeze has 'nothing'"),
        ("train.lr_factors", [["nothing", 2]], "train.lr_factors has 'nothing'"),
        ("train.profiler", {"enabled": True, "wait": 9, "warmup": 0, "active": 1}, "profiler wait"),
        ("dataloader.train.total_batch_size", -2, "total batch size -2"),
        ("dataloader.train.mapper.min_visible", 2, "mapper cannot be built: .* got 2"),
    ],
)
def test_a_wrong_config_is_found_before_wrong_data(sample, key, value, message):
    spoil(sample)
    sample.write()
    with registered(sample) as cfg:
        cfg = copy.deepcopy(cfg)
        OmegaConf.update(cfg, key, value, force_add=True)
        with pytest.raises(ConfigError, match=message):
            do_train(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ATSS.MATCHER.TOPK", 0, "topk must be"),
        ("SOLVER.IMS_PER_BATCH", -2, "total batch size -2"),
    ],
)
def test_a_wrong_yaml_config_is_found_before_wrong_data(sample, tmp_path, key, value, message):
    spoil(sample)
    sample.write()
    with registered(sample):
        own = ["DATASETS.TRAIN", ("case_train",), "DATASETS.TEST", ("case_val",)]
        run = toy.YamlRun(tmp_path / "yaml", *own)
        with pytest.raises(DataError, match="1 image is missing"):
            run.train()
        run.cfg.merge_from_list([key, value])
        with pytest.raises(ValueError, match=message):
            run.train()


@pytest.mark.skipif(not can_fork(), reason="this process reads the annotations itself")
def test_a_yaml_run_keeps_no_annotations_for_the_check_of_the_evaluator(
    sample, tmp_path, monkeypatch, caplog
):
    sample.write()
    loaded, get = [], DatasetCatalog.get
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: loaded.append(name) or get(name))
    with registered(sample):
        own = ["DATASETS.TRAIN", ("case_train",), "DATASETS.TEST", ("case_val",)]
        toy.YamlRun(tmp_path / "yaml", *own).train()
    assert loaded == []  # in this process
    assert not [x for x in caplog.records if "equal to the annotations" in x.getMessage()]


def test_an_own_function_is_checked_as_it_reads(sample):
    """It may leave out what the file has too much, and give what the file has not."""
    spoil(sample)
    sample.write()
    root = str(sample.folder / "train")

    def read():
        dicts = load_coco_json(str(sample.json_file("train")), root, "case_train")
        return dicts[2:]

    with registered(sample) as cfg:
        DatasetCatalog.remove("case_train")
        DatasetCatalog.register("case_train", read)
        check_data(cfg)
        sample.file("train", 3).unlink()
        with pytest.raises(DataError, match="'case_train': 1 image is missing, e.g. '.*003.jpg"):
            check_data(cfg)


def test_data_sets_that_are_no_lists_are_left_alone(sample):
    sample.write()
    with registered(sample) as cfg:
        DatasetCatalog.remove("case_train")
        DatasetCatalog.register("case_train", lambda: torch.utils.data.TensorDataset())
        check_data(cfg)
        DatasetCatalog.remove("case_train")
        DatasetCatalog.register("case_train", lambda: 1 / 0)
        with pytest.raises(DataError, match="checking the data failed: ZeroDivisionError"):
            check_data(cfg)


def check_evaluator(cfg):
    dataset, _ = load_test_set(cfg)
    check_config_evaluator(cfg, dataset)


def test_an_evaluator_is_built_and_used_before_it_is_needed(sample, monkeypatch):
    sample.write()
    with registered(sample) as cfg:
        check_evaluator(cfg)
        assert not (sample.folder / "output").exists()  # nothing is written
        for evaluator, message in (
            (L(Unusable)(dataset_name="case_val"), "ImportError: No module named 'some_library'"),
            (
                L(COCOEvaluator)(dataset_name="case_train"),
                "'case_val' get an AP of 0.0 instead",
            ),
        ):
            monkeypatch.setitem(cfg.dataloader, "evaluator", evaluator)
            with pytest.raises(DataError, match=message):
                check_evaluator(cfg)
        monkeypatch.setitem(cfg.dataloader, "evaluator", L(OwnEvaluator)())
        check_evaluator(cfg)


def test_a_test_loader_is_built_before_it_is_needed(sample, monkeypatch):
    sample.write()
    with registered(sample) as cfg:
        monkeypatch.setitem(cfg.dataloader.test, "num_workers", -1)
        with pytest.raises(DataError, match="num_workers"):
            check_evaluator(cfg)


def test_an_own_function_cannot_hide_faults_from_the_evaluation(sample):
    """Its dicts may be good; COCO's evaluation reads the file."""
    sample.content["val"]["annotations"][0]["id"] = 0
    sample.write()
    with registered(sample) as cfg:
        read = DatasetCatalog.pop("case_val")
        DatasetCatalog.register("case_val", lambda: read())
        check_data(cfg)
        with pytest.raises(DataError, match="'case_val': 1 annotation has the id 0"):
            check_evaluator(cfg)


def test_an_old_copy_of_converted_annotations_is_found(sample):
    """Detectron2 converts the dicts of a function once, and then trusts the file."""
    sample.write()
    root = str(sample.folder / "val")
    dicts = load_coco_json(str(sample.json_file("val")), root, "case_val")
    with registered(sample) as cfg:
        for number in (2, 4):
            DatasetCatalog.pop("case_val", None)
            MetadataCatalog.pop("case_val", None)
            DatasetCatalog.register("case_val", lambda n=number: dicts[:n])
            MetadataCatalog.get("case_val").thing_classes = ["bright", "dark"]
            if number == 2:
                check_evaluator(cfg)
        with pytest.raises(DataError, match="2 of 4 images .* delete it if it is an old copy"):
            check_evaluator(cfg)


def _rank(rank: int, path, results) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=2
    )

    def fail(error):
        assert rank == 0
        raise error

    said = []
    for error in (DataError("as it was"), KeyError("a bug")):
        try:
            on_first_process(functools.partial(fail, error))
        except DataError as raised:
            said.append(str(raised))
    said.append(on_first_process(comm.get_rank))
    results.put((rank, said))


def test_all_processes_end_with_the_error_of_the_first(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, tmp_path / "store", results)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    ends = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    expected = ["as it was", "checking the data failed: KeyError: 'a bug'", 0]
    assert ends == {0: expected, 1: expected}


def test_losses_are_those_without_the_checks(toy_data, tmp_path):
    runs = []
    for is_checked in (True, False):
        cfg = toy.config(tmp_path / str(is_checked), **{"train.max_iter": 3})
        cfg.train.check_data = is_checked
        torch.manual_seed(0)
        do_train(cfg)
        metrics = toy.read_metrics(tmp_path / str(is_checked))
        runs.append([metrics[i]["total_loss"] for i in range(3)])
    assert runs[0] == runs[1]
