"""The recipes with multi-scale testing: the passes of the authors, all else as in their parents."""

import math
from pathlib import Path

import pytest
from detectron2.config import LazyConfig
from omegaconf import OmegaConf

from atss_d2 import DenseDetectorWithTTA, get_config
from atss_d2.config import get_config_path
from atss_d2.engine.models import build_model_with_tta
from tests.spots import Spots

QUOTED = {
    "coco/atss_dcnv2_X_101_32x8d_FPN_2x_tta": "50.6",
    "coco/atss_dcnv2_X_101_64x4d_FPN_2x_tta": "50.7",
}

# Shorter side, longest side, sizes of the boxes that count in the scaled image.
PASSES = """
    800 1333   0 inf
    400 1333  96 inf
    500 1333  96 inf
    600 1333  64 inf
    640 1333  64 inf
    700 1333  64 inf
    900 3000   0 inf
   1000 3000   0 inf
   1100 3000   0 256
   1200 3000   0 256
   1300 3000   0 192
   1400 3000   0 192
   1800 3000   0  96
"""


def built(cfg) -> DenseDetectorWithTTA:
    return build_model_with_tta(cfg, Spots())


@pytest.mark.parametrize("name", QUOTED)
def test_passes_of_the_authors(name, tmp_path):
    LazyConfig.save(get_config(name), str(tmp_path / "config.yaml"))  # infinity survives
    model = built(LazyConfig.load(str(tmp_path / "config.yaml")))
    rows = [line.split() for line in PASSES.split("\n") if line.strip()]
    assert len(rows) * 2 == 26
    assert model.flip
    assert model.size_ranges == [(int(low), float(high)) for _, _, low, high in rows]
    assert model.size_ranges[0] == (0, math.inf)
    for resize, (shorter, longest, _, _) in zip(model.resizes, rows, strict=True):
        assert tuple(resize.short_edge_length) == (int(shorter), int(shorter))
        assert resize.max_size == int(longest)
    assert (model.merge, model.iou_thresh) == ("soft_vote", 0.66)
    assert model.soft_vote_score_thresh == 0.05
    assert model.max_detections_per_image == 1000


@pytest.mark.parametrize("name", QUOTED)
def test_all_else_is_as_in_the_model_without(name):
    cfg, parent = get_config(name), get_config(name.removesuffix("_tta"))
    del cfg.test_time_augmentation
    assert OmegaConf.to_container(cfg) == OmegaConf.to_container(parent)


@pytest.mark.parametrize("name", QUOTED)
def test_header(name):
    source = Path(get_config_path(name)).read_text()
    last = source.split('"""')[1].strip().splitlines()[-1]
    assert last.startswith(f"Quoted COCO box AP: test-dev {QUOTED[name]} with the 26 passes, 47.7 ")
    # A few lines on its parent.
    assert len(source.split('"""')[2].strip().splitlines()) == 2
