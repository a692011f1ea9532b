"""The configs of Tables 1 to 7: what each changes, what it quotes, and that it trains."""

import ast
import math
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances

from ablations import ROWS
from ablations.configs import config_hash
from atss_d2 import (
    ATSSMatcher,
    CenterSamplingMatcher,
    IoUMatcher,
    ScaleRangeMatcher,
    get_config,
    list_configs,
)
from atss_d2.config import get_config_path
from atss_d2.modeling.box_coding import PointDistances
from tests.detector import CHANNELS, ToyBackbone

# As the paper prints them.
QUOTED = {
    "table1/retinanet": 32.5,
    "table1/retinanet_gn": 33.4,
    "table1/retinanet_giou": 34.9,
    "table1/retinanet_in_gt": 35.3,
    "table1/retinanet_centerness": 36.8,
    "table1/retinanet_scalar": 37.0,
    "table1/fcos": 37.8,
    "table2/iou_box": 37.0,
    "table2/iou_point": 36.9,
    "table2/spatial_scale_box": 37.8,
    "table2/spatial_scale_point": 37.8,
    "table3/retinanet": 37.0,
    "table3/retinanet_atss": 39.3,
    "table3/fcos": 37.8,
    "table3/fcos_center_sampling": 38.6,
    "table3/fcos_atss": 39.2,
    "table4/k3": 38.0,
    "table4/k5": 38.8,
    "table4/k7": 39.1,
    "table4/k9": 39.3,
    "table4/k11": 39.1,
    "table4/k13": 39.0,
    "table4/k15": 39.1,
    "table4/k17": 39.2,
    "table4/k19": 38.9,
    "table5/scale5": 39.0,
    "table5/scale6": 39.2,
    "table5/scale7": 39.3,
    "table5/scale8": 39.3,
    "table5/scale9": 38.9,
    "table6/aspect_1_4": None,
    "table6/aspect_1_2": None,
    "table6/aspect_1_1": 39.3,
    "table6/aspect_2_1": None,
    "table6/aspect_4_1": None,
    "table7/retinanet_a9": 36.3,
    "table7/retinanet_a9_improved": 38.4,
    "table7/atss_3x3": 39.2,
    "table7/atss_3x1": 39.3,
    "table7/atss_1x3": 39.2,
    "table7/atss_1x1": 39.3,
}
NAMES = list(QUOTED)
SAME = [
    ("table1/retinanet_scalar", "table2/iou_box", "table3/retinanet"),
    ("table1/fcos", "table2/spatial_scale_point", "table3/fcos"),
    (
        "table3/retinanet_atss",
        "table4/k9",
        "table5/scale8",
        "table6/aspect_1_1",
        "table7/atss_1x1",
    ),
]
DISTINCT = [name for name in NAMES if not any(name in names[1:] for names in SAME)]


@pytest.fixture(scope="module")
def configs(configs):
    """The configs of all rows; not to be changed."""
    return {name: configs[f"ablations/{name}"] for name in NAMES}


def test_rows_are_those_of_the_paper_with_its_numbers():
    assert {row.name: row.quoted_ap for row in ROWS} == QUOTED
    assert [row.name for row in ROWS] == NAMES  # in its order
    found = [name for name in list_configs() if name.startswith("ablations/")]
    assert sorted(found) == sorted(f"ablations/{name}" for name in NAMES)
    assert [row.config for row in ROWS] == [f"ablations/{name}" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_header_quotes_the_number_and_says_how_to_rerun(name):
    source = Path(get_config_path(f"ablations/{name}")).read_text()
    lines = ast.get_docstring(ast.parse(source)).splitlines()
    command = f"python train_net.py --config-file configs/ablations/{name}.py --num-gpus 8"
    assert lines[2].strip() == command
    table = f"Table {name[len('table')]}"
    if QUOTED[name] is None:
        assert lines[-1].startswith("No AP is quoted: the paper calls results insensitive")
        assert table in lines[-1]
    else:
        assert lines[-1] == f"Quoted COCO val2017 box AP: {QUOTED[name]} (paper, {table})."


def test_rows_that_are_one_experiment_are_one_config(configs):
    groups = {}
    for name, cfg in configs.items():
        groups.setdefault(config_hash(cfg), []).append(name)
    assert [tuple(group) for group in groups.values() if len(group) > 1] == SAME
    assert sum(len(names) - 1 for names in SAME) == len(NAMES) - len(DISTINCT)
    reference = get_config("coco/atss_R_50_FPN_1x")
    assert config_hash(reference) == config_hash(configs["table3/retinanet_atss"])


# matcher, coder, norm, centerness, scalars, loss, its weight, "in GT box"
BOX, POINT = Box2BoxTransform, PointDistances
SWITCHES = {
    "table1/retinanet": (IoUMatcher, BOX, "", False, False, "smooth_l1", 0.25, False),
    "table1/retinanet_gn": (IoUMatcher, BOX, "GN", False, False, "smooth_l1", 0.25, False),
    "table1/retinanet_giou": (IoUMatcher, BOX, "GN", False, False, "giou", 2.0, False),
    "table1/retinanet_in_gt": (IoUMatcher, BOX, "GN", False, False, "giou", 2.0, True),
    "table1/retinanet_centerness": (IoUMatcher, BOX, "GN", True, False, "giou", 2.0, True),
    "table1/retinanet_scalar": (IoUMatcher, BOX, "GN", True, True, "giou", 2.0, True),
    "table1/fcos": (ScaleRangeMatcher, POINT, "GN", True, True, "giou", 2.0, None),
    "table2/iou_point": (IoUMatcher, POINT, "GN", True, True, "giou", 2.0, True),
    "table2/spatial_scale_box": (ScaleRangeMatcher, BOX, "GN", True, True, "giou", 2.0, None),
    "table3/retinanet_atss": (ATSSMatcher, BOX, "GN", True, True, "giou", 2.0, None),
    "table3/fcos_center_sampling": (
        *(CenterSamplingMatcher, POINT, "GN", True, True, "giou", 2.0, None),
    ),
    "table3/fcos_atss": (ATSSMatcher, POINT, "GN", True, True, "giou", 2.0, None),
    **{
        name: (ATSSMatcher, BOX, "GN", True, True, "giou", 2.0, None)
        for name in NAMES
        if name.startswith(("table4", "table5", "table6", "table7/atss"))
    },
    "table7/retinanet_a9": (IoUMatcher, BOX, "", False, False, "smooth_l1", 0.25, False),
    "table7/retinanet_a9_improved": (IoUMatcher, BOX, "GN", True, True, "giou", 2.0, True),
}


@pytest.fixture(scope="module")
def toy_models(configs):
    """The models of all rows on a tiny backbone of five levels."""
    models = {}
    for name in DISTINCT:
        model = configs[name].model.copy()
        model.backbone = L(ToyBackbone)(num_levels=5)
        model.head.update(input_shape=[ShapeSpec(channels=CHANNELS)] * 5, conv_dims=[CHANNELS])
        model.pixel_std = [57.0, 57.0, 57.0]
        torch.manual_seed(0)
        models[name] = instantiate(model)
    return models


@pytest.mark.parametrize("name", DISTINCT)
def test_switches_of_a_row(configs, toy_models, name):
    matcher, coder, norm, centerness, scalars, loss, weight, in_gt = SWITCHES[name]
    model = toy_models[name]
    assert type(model.matcher) is matcher
    assert configs[name].model.box2box_transform._target_ is coder
    assert [m for m in model.head.modules() if isinstance(m, torch.nn.GroupNorm)] != [] or not norm
    assert (model.head.ctrness is not None) == centerness
    assert any(".scale" in key for key, _ in model.head.named_parameters()) == scalars
    criterion = model.criterion
    assert (criterion.box_reg_loss_type, criterion.box_reg_loss_weight) == (loss, weight)
    assert getattr(model.matcher, "center_in_gt", None) == in_gt
    # Distances start at 4 strides, deltas at the anchor itself.
    assert model.head.bbox_pred.bias.unique().tolist() == [4.0 if coder is POINT else 0.0]


# Table 4 differs from them in k alone, Table 5 in the size of the anchors.
KINDS = [name for name in DISTINCT if not name.startswith(("table4", "table5"))]


@pytest.mark.parametrize("name", KINDS)
def test_a_row_trains_and_detects(toy_models, name):
    model = toy_models[name]
    image = torch.randint(0, 255, (3, 64, 128)).float()
    boxes = Boxes(torch.tensor([[8.0, 8.0, 100.0, 60.0], [60.0, 20.0, 90.0, 50.0]]))
    gt = Instances((64, 128), gt_boxes=boxes, gt_classes=torch.tensor([3, 79]))
    losses = model.train()([{"image": image, "instances": gt}])
    assert set(losses) == {"loss_cls", "loss_box_reg"} | (
        {"loss_centerness"} if SWITCHES[name][3] else set()
    )
    sum(losses.values()).backward()
    assert all(math.isfinite(loss.item()) and loss.item() > 0 for loss in losses.values())
    gradients = [p.grad for p in model.head.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    model.test_score_thresh = 0.0
    found = model.eval()([{"image": image}])[0]["instances"]
    assert 0 < len(found) <= 100
    assert found.pred_boxes.tensor.isfinite().all()


def test_k_of_table4(toy_models):
    for k in range(3, 20, 2):
        name = "table3/retinanet_atss" if k == 9 else f"table4/k{k}"
        assert toy_models[name].matcher.topk == k


def sides(model) -> list[list[tuple[float, float]]]:
    """Per level the (width, height) of the anchors of a location, in strides."""
    generator = model.anchor_generator
    return [
        [
            ((x2 - x1).item() / stride, (y2 - y1).item() / stride)
            for x1, y1, x2, y2 in cells.detach()
        ]
        for cells, stride in zip(generator.cell_anchors, generator.strides, strict=True)
    ]


def each_level(*anchors):
    return [pytest.approx(anchors, rel=1e-5)] * 5


def test_anchors_of_table5(toy_models):
    for scale in range(5, 10):
        name = "table3/retinanet_atss" if scale == 8 else f"table5/scale{scale}"
        assert [sum(cells, ()) for cells in sides(toy_models[name])] == each_level(scale, scale)


@pytest.mark.parametrize(
    ("name", "width", "height"),
    [("1_4", 4, 16), ("1_2", 32**0.5, 128**0.5), ("2_1", 128**0.5, 32**0.5), ("4_1", 16, 4)],
)
def test_anchors_of_table6(toy_models, name, width, height):
    """Width : height; all of the area of a square of 8 x stride."""
    found = sides(toy_models[f"table6/aspect_{name}"])
    assert [sum(cells, ()) for cells in found] == each_level(width, height)


@pytest.mark.parametrize(
    ("names", "scales", "ratios"),
    [
        (("retinanet_a9", "retinanet_a9_improved", "atss_3x3"), (4, 5.0397, 6.3496), (0.5, 1, 2)),
        (("atss_3x1",), (4, 5.0397, 6.3496), (1,)),
        (("atss_1x3",), (8,), (0.5, 1, 2)),
    ],
)
def test_anchors_of_table7(toy_models, names, scales, ratios):
    """4 x 2^(1/3) = 5.0397; a ratio is height / width."""
    expected = sorted((s / r**0.5, s * r**0.5) for s in scales for r in ratios)
    for name in names:
        model = toy_models[f"table7/{name}"]
        for level in sides(model):
            flat = sum(sorted(level), ())
            assert flat == pytest.approx(sum(expected, ()), rel=1e-4)
        assert model.head.num_anchors == len(scales) * len(ratios)
        assert getattr(model.matcher, "num_anchors", len(expected)) == len(expected)


def test_fcos_rows_use_the_rules_of_the_paper(toy_models):
    sampling = toy_models["table3/fcos_center_sampling"].matcher
    assert (sampling.topk, sampling.radius) == (9, None)
    for name in ("table1/fcos", "table2/spatial_scale_box", "table3/fcos_center_sampling"):
        matcher = toy_models[name].matcher
        assert (matcher.strides, matcher.range_factor) == ((8, 16, 32, 64, 128), 8.0)
