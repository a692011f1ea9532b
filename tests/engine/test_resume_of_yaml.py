"""Interrupted runs of yaml configs go on as if nothing had happened."""

import itertools
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.env import seed_all_rng

from atss_d2.config import load_config
from atss_d2.engine import Trainer
from atss_d2.engine.train_loader import instantiate_train_loader
from tests import toy

pytestmark = pytest.mark.usefixtures("toy_data")

MAX_ITER = 6
FAIL_AT = 4  # after the checkpoint of iteration 2


@META_ARCH_REGISTRY.register()
class NoisyToy(toy.NoisyATSS):
    """For ``MODEL.META_ARCHITECTURE``."""


class YamlRun:
    def __init__(self, folder: Path, *overrides) -> None:
        self.folder = folder
        self.output_dir = folder / "output"
        folder.mkdir(exist_ok=True)
        (folder / "toy.yaml").write_text(toy.yaml_config(self.output_dir))
        self.cfg = load_config(folder / "toy.yaml")
        own = ["MODEL.DEVICE", "cpu", "SEED", 3, "MODEL.META_ARCHITECTURE", "NoisyToy"]
        own += ["INPUT.MIN_SIZE_TRAIN", (80, 96, 112)]
        self.cfg.merge_from_list([*own, *overrides])

    def train(self, *, resume: bool = False, fail_at: int | None = None, seed: int = 0) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TOY_SEEN", str(self.folder / "seen"))
            if fail_at is not None:
                patch.setenv("TOY_FAIL_AT", str(fail_at))
            seed_all_rng(seed)
            trainer = Trainer(self.cfg)
            trainer.resume_or_load(resume=resume)
            if fail_at is None:
                trainer.train()
            else:
                with pytest.raises(toy.ToyError):
                    trainer.train()

    def checkpoint(self) -> dict:
        return torch.load(self.output_dir / "model_final.pth")


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
    whole = YamlRun(tmp_path / "whole", *overrides)
    whole.train()
    run = YamlRun(tmp_path / "resumed", *overrides)
    run.train(fail_at=FAIL_AT)
    run.cfg.DATALOADER.NUM_WORKERS = 0 if overrides else 2
    run.train(resume=True, seed=1)
    seen = [toy.seen_images(r.folder / "seen") for r in (run, whole)]
    assert seen[0] == seen[1]
    toy.assert_equal(run.checkpoint(), whole.checkpoint())


def test_a_lazy_config_has_the_same_batches(tmp_path):
    run = YamlRun(tmp_path)
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
