"""The meta-architecture ``RetinaNetWithMatcher`` on Detectron2's yaml configs."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNet

from atss_d2 import (
    ATSSMatcher,
    CenterSamplingMatcher,
    IoUMatcher,
    add_atss_config,
    use_matcher,
)
from tests import detectron2_models as d2


def config(*overrides, meta_architecture="RetinaNetWithMatcher"):
    """Detectron2's RetinaNet R-50 with the toy backbone."""
    cfg = get_cfg()
    add_atss_config(cfg)
    cfg.merge_from_file(d2.model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE",
            meta_architecture,
            "MODEL.BACKBONE.NAME",
            "build_toy_backbone",
            "MODEL.RETINANET.IN_FEATURES",
            ["p3", "p4"],
            "MODEL.RETINANET.NUM_CLASSES",
            d2.NUM_CLASSES,
            "MODEL.ANCHOR_GENERATOR.SIZES",
            [[32], [64]],
            "MODEL.PIXEL_STD",
            [57.0, 57.0, 57.0],
            "MODEL.DEVICE",
            "cpu",
            *overrides,
        ]
    )
    return cfg


def test_it_is_detectron2s_retinanet_with_another_rule():
    torch.manual_seed(0)
    stock = build_model(config(meta_architecture="RetinaNet"))
    torch.manual_seed(0)
    model = build_model(config())
    assert isinstance(model, RetinaNet)
    stock.load_state_dict(model.state_dict(), strict=True)
    assert type(model.label_anchors.matcher) is ATSSMatcher
    assert model.label_anchors.matcher.num_anchors == 3
    use_matcher(stock, model.label_anchors.matcher)
    torch.testing.assert_close(d2.losses_of(model), d2.losses_of(stock), rtol=0, atol=0)


def test_keys_choose_the_rule_and_its_arguments():
    model = build_model(config("MODEL.ATSS.MATCHER.TOPK", 4))
    assert model.label_anchors.matcher.topk == 4
    model = build_model(config("MODEL.ATSS.MATCHER.NAME", "IoUMatcher"))
    assert type(model.label_anchors.matcher) is IoUMatcher
    model = build_model(
        config(
            "MODEL.ATSS.MATCHER.NAME",
            "CenterSamplingMatcher",
            "MODEL.ATSS.CENTER_SAMPLING_MATCHER.RADIUS",
            2.0,
        )
    )
    matcher = model.label_anchors.matcher
    assert type(matcher) is CenterSamplingMatcher
    assert (matcher.radius, matcher.strides) == (2.0, (8, 16))


def test_errors():
    with pytest.raises(ValueError, match=r"MATCHER.NAME must be one of ATSSMatcher, .* 'ATS'"):
        build_model(config("MODEL.ATSS.MATCHER.NAME", "ATS"))
