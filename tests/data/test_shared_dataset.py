"""A data set that one process of a machine loads and the others map."""

import functools
import json
import multiprocessing
import os
import pickle
import signal
import tempfile

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json, register_coco_instances

from atss_d2.data import BoxDatasetMapper, DataError
from atss_d2.data.mapper import unused_annotation_keys
from atss_d2.data.shared_dataset import SharedDataset, shared_path, write_dataset
from atss_d2.data.shared_loading import MASK_KEYS, load_shared
from tests.data.test_coco_reader import POLYGON, annotation, content

DICTS = [
    {"file_name": "a", "width": 5, "height": 4, "annotations": [{"bbox": [1], "segmentation": 2}]},
    {"file_name": "b", "width": 5, "height": 5, "annotations": []},
    {"file_name": "c", "width": None},
    ["not a dict"],
]


@pytest.fixture
def shared():
    with tempfile.TemporaryFile() as file:
        layout = write_dataset(DICTS, file, drop=["segmentation"])
        return SharedDataset(shared_path(file), layout)  # outlives the file


def test_it_is_a_sequence_of_the_dicts_without_dropped_keys(shared):
    expected = [{**DICTS[0], "annotations": [{"bbox": [1]}]}, *DICTS[1:]]
    assert len(shared) == 4
    assert list(shared) == expected == shared[:]
    assert shared[-1] == shared[3] == DICTS[3]
    assert shared[1:3] == expected[1:3]
    with pytest.raises(IndexError):
        shared[4]
    shared[0]["file_name"] = "changed"
    assert shared[0]["file_name"] == "a"


def test_groups_of_aspect_ratios(shared):
    assert shared.aspect_ratio_groups().tolist() == [1, 0, -1, -1]


def test_it_can_be_sent_to_another_process(shared):
    pickled = pickle.dumps(shared)
    assert len(pickled) < 500  # a path, not the content
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read_pickled, (pickled,)) == list(shared)


def read_pickled(pickled):
    return list(pickle.loads(pickled))


def test_only_known_mappers_drop_keys():
    class OwnMapper(BoxDatasetMapper):
        pass

    arguments = dict(is_train=True, augmentations=[], image_format="BGR")
    assert unused_annotation_keys(BoxDatasetMapper(**arguments)) == list(MASK_KEYS)
    masks = BoxDatasetMapper(**arguments, use_instance_mask=True)
    assert unused_annotation_keys(masks) == ["keypoints"]
    assert unused_annotation_keys(OwnMapper(**arguments)) == []
    assert unused_annotation_keys(None) == []


def load_with_metadata(result, name="shared_test", **metadata):
    MetadataCatalog.get(name).set(**metadata)
    return result


@pytest.fixture
def catalog():
    yield MetadataCatalog
    for name in [x for x in MetadataCatalog.list() if x.startswith("shared_test")]:
        MetadataCatalog.remove(name)
    for name in [x for x in DatasetCatalog.list() if x.startswith("shared_test")]:
        DatasetCatalog.remove(name)


def test_metadata_of_the_loading_process_arrives(catalog):
    catalog.get("shared_test").json_file = "a.json"
    load = functools.partial(load_with_metadata, DICTS, thing_classes=["x"], own=lambda: 0)
    assert list(load_shared(load)) == DICTS
    values = catalog.get("shared_test").as_dict()
    assert values == {"name": "shared_test", "json_file": "a.json", "thing_classes": ["x"]}


def test_results_that_are_no_lists_are_loaded_here():
    dataset = torch.utils.data.TensorDataset(torch.zeros(2))
    assert load_shared(lambda: dataset) is dataset


def test_errors_of_the_loading_process_are_raised():
    def fail():
        raise FileNotFoundError(2, "No such file", "a.json")

    with pytest.raises(FileNotFoundError) as caught:
        load_shared(fail)
    assert caught.value.filename == "a.json"
    assert "in fail" in caught.value.__notes__[0]

    class Local(Exception):
        pass

    def fail_locally():
        raise Local("why")

    with pytest.raises(RuntimeError, match="Local: why"):
        load_shared(fail_locally)


def test_a_killed_loading_process_is_a_sentence():
    with pytest.raises(DataError, match="killed, as happens when the machine has no memory left"):
        load_shared(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_full_disk_is_a_sentence(monkeypatch):
    full = functools.partial(open, "/dev/full", "r+b", buffering=0)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(DataError, match="No space left on device.*set TMPDIR"):
        load_shared(lambda: DICTS)


def test_coco_files_are_read_without_masks_and_equal_detectron2s(catalog, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps(content(annotation(1, segmentation=POLYGON), annotation(2, 4, iscrowd=1)))
    )
    register_coco_instances("shared_test_a", {}, str(path), "root")
    DatasetCatalog.register("shared_test_b", lambda: load_coco_json(path, "root", "shared_test_b"))
    load = functools.partial(get_detection_dataset_dicts, ["shared_test_a", "shared_test_b"])
    dicts = list(load_shared(load, drop=MASK_KEYS))
    expected = load()
    assert len(expected) == 2  # the image with a crowd only is left out
    assert "segmentation" in expected[0]["annotations"][0]
    assert [x | {"annotations": None} for x in dicts] == [
        x | {"annotations": None} for x in expected
    ]
    for found, whole in zip(dicts, expected):
        kept = [{k: v for k, v in x.items() if k != "segmentation"} for x in whole["annotations"]]
        assert found["annotations"] == kept


def load_in_one_of_two(folder, rank):
    """Body of a process: loads, fails, and loads what cannot be shared."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )

    def load():
        with open(folder / "loads", "a") as loads:
            loads.write(f"{rank}\n")
        return load_with_metadata(DICTS, thing_classes=["x"])

    def fail():
        raise DataError(f"of process {rank}")

    dataset = load_shared(load)
    assert isinstance(dataset, SharedDataset)
    found = list(dataset), MetadataCatalog.get("shared_test").thing_classes
    try:
        load_shared(fail)
    except DataError as error:
        found += (str(error),)
    found += (load_shared(lambda: rank),)
    with open(f"{folder}/{rank}.pkl", "wb") as file:
        pickle.dump(found, file)
    torch.distributed.destroy_process_group()


def test_one_process_of_a_machine_loads(tmp_path):
    context = multiprocessing.get_context("fork")  # quicker than importing everything twice
    processes = [
        context.Process(target=load_in_one_of_two, args=(tmp_path, rank)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "loads").read_text() == "0\n"
    for rank in range(2):
        found = pickle.loads((tmp_path / f"{rank}.pkl").read_bytes())
        assert found == (DICTS, ["x"], "of process 0", rank)
