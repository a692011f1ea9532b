"""Interrupted runs of yaml configs go on as if nothing had happened."""

import itertools

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from atss_d2.engine import Trainer
from atss_d2.engine.train_loader import instantiate_train_loader
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

MAX_ITER = 6
FAIL_AT = 4  # after the checkpoint of iteration 2


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["SEED", -1, "DATALOADER.ASPECT_RATIO_GROUPING", False],
        ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
    ],
    ids=["grouped", "drawn-seed", "repeat-factors"],
)
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, overrides):
    whole = toy.YamlRun(tmp_path / "whole", *overrides)
    whole.train()
    run = toy.YamlRun(tmp_path / "resumed", *overrides)
    run.train(fail_at=FAIL_AT)
    run.cfg.DATALOADER.NUM_WORKERS = 0 if overrides else 2
    run.train(resume=True, seed=1)
    seen = [toy.seen_images(r.folder / "seen") for r in (run, whole)]
    assert seen[0] == seen[1]
    toy.assert_equal(run.checkpoint(), whole.checkpoint())


def test_a_lazy_config_has_the_same_batches(tmp_path):
    run = toy.YamlRun(tmp_path)
    lazy = toy.config(tmp_path)
    lazy.dataloader.train.mapper.augmentations = [
        L(T.ResizeShortestEdge)(
            short_edge_length=(80, 96, 112), max_size=1333, sample_style="choice"
        ),
        L(T.RandomFlip)(),
    ]
    loaders = [
        Trainer.build_train_loader(run.cfg),
        instantiate_train_loader(lazy.dataloader.train, seed=run.cfg.SEED),
    ]
    for batches in itertools.islice(zip(*loaders), 12):
        for one, other in zip(*batches):
            assert one["file_name"] == other["file_name"]
            assert torch.equal(one["image"], other["image"])
            boxes = [x["instances"].gt_boxes.tensor for x in (one, other)]
            assert torch.equal(*boxes)
