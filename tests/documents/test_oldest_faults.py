"""The first faults that persons with data of their own met, each by the command that they typed.

A third one, names of classes that were lost on the way to pictures, JSON and exported files, is
looked for behind the commands of docs/custom_dataset.md (table.py).
"""

from __future__ import annotations

import json

import pytest

from tests.documents.blocks import read
from tests.documents.checkout import Checkout

TRAIN = ["python", "train_net.py", "--config-file", "my_config.py"]
SMALL = [
    "train.max_iter=1",
    "train.eval_period=0",
    "dataloader.train.total_batch_size=2",
    "train.init_checkpoint=''",
    "train.report.enabled=False",
    "model.backbone.bottom_up.norm=BN",
    "model.backbone.bottom_up.freeze_at=0",
    "dataloader.train.mapper.augmentations.0.short_edge_length=64",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    """With ``my_config.py`` of the document, which registers by a function of Detectron2."""
    checkout = Checkout(tmp_path)
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


def test_the_first_faults(checkout):
    """Each number of processes: it was executed twice, "Dataset 'my_train' is already registered!".

    Another number of classes than the data have trained, and with too few, objects of the last
    classes became background.
    """
    for num_processes in (1, 2):
        output = f"train.output_dir=output/{num_processes}"
        process = checkout.run(*TRAIN, "--num-gpus", str(num_processes), *SMALL, output)
        assert process.returncode == 0, process.stderr
        output = checkout.folder / f"output/{num_processes}"
        rows = (output / "metrics.json").read_text().splitlines()
        assert {"bbox/AP", "iteration"} <= set(json.loads(rows[-1]))
        assert (output / "model_final.pth").is_file()

    wrong = ["model.num_classes=2", "train.output_dir=output/wrong"]
    process = checkout.run(*TRAIN, *SMALL, *wrong)
    assert process.returncode == 1
    assert process.stderr == (
        "train_net.py: model.num_classes is 2, but the data set 'my_train' has 3 "
        "classes (disc, square, triangle): set model.num_classes=3\n"
    )
    assert not (checkout.folder / "output" / "wrong").exists()
