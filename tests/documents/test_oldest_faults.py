"""The first faults that persons with data of their own met, each by the command that they typed.

A third one, names of classes that were lost on the way to pictures, JSON and ONNX, is looked for
behind the commands of docs/custom_dataset.md (table.py).
"""

from __future__ import annotations

import json

import pytest

from tests.documents.blocks import read
from tests.documents.checkout import Checkout

SMALL = (
    "train.max_iter=1 train.eval_period=0 dataloader.train.total_batch_size=2 "
    "train.init_checkpoint='' train.report.enabled=False model.backbone.bottom_up.norm=BN "
    "model.backbone.bottom_up.freeze_at=0 "
    "dataloader.train.mapper.augmentations.0.short_edge_length=64 "
    "dataloader.test.mapper.augmentations.0.short_edge_length=64"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    """With ``my_config.py`` of the document, which registers by a function of Detectron2."""
    checkout = Checkout(tmp_path_factory.mktemp("faults"))
    checkout.add_own_data()
    (text,) = [
        x.text for x in read("docs/custom_dataset.md") if "custom/atss_mobilenetv2" in x.text
    ]
    old = "from atss_d2.data import register_coco\n"
    assert old in text
    text = text.replace(old, "from detectron2.data.datasets import register_coco_instances\n")
    text = text.replace('register_coco("my_train", ', 'register_coco_instances("my_train", {}, ')
    text = text.replace('register_coco("my_val", ', 'register_coco_instances("my_val", {}, ')
    (checkout.folder / "my_config.py").write_text(text)
    return checkout


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_config_that_registers_data_sets_trains(checkout, num_processes):
    """It was executed twice in a process: "Dataset 'my_train' is already registered!"."""
    process = checkout.run(
        f"python train_net.py --config-file my_config.py --num-gpus {num_processes} {SMALL} "
        f"train.output_dir=output/{num_processes}"
    )
    assert process.returncode == 0, process.stderr
    rows = (checkout.folder / f"output/{num_processes}/metrics.json").read_text().splitlines()
    assert {"bbox/AP", "iteration"} <= set(json.loads(rows[-1]))
    assert (checkout.folder / f"output/{num_processes}/model_final.pth").is_file()


@pytest.mark.parametrize("num_classes", [2, 5])
def test_another_number_of_classes_than_the_data_have_does_not_train(checkout, num_classes):
    """It trained: with too few classes, objects of the last ones became background."""
    process = checkout.run(
        f"python train_net.py --config-file my_config.py {SMALL} model.num_classes={num_classes} "
        "train.output_dir=output/wrong"
    )
    assert process.returncode == 1
    assert process.stderr == (
        f"train_net.py: model.num_classes is {num_classes}, but the data set 'my_train' has 3 "
        "classes (disc, square, triangle): set model.num_classes=3\n"
    )
    assert not (checkout.folder / "output" / "wrong").exists()
