"""``use_atss`` tells the matcher the sizes of the maps: no look at anchors, no wait for a GPU."""

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes
from torch import nn

from atss_d2 import use_atss, use_matcher
from atss_d2.integration.detector import LabelAnchors
from atss_d2.modeling.matchers import grid as grid_module
from benchmarks import models
from benchmarks.cases.losses import training_pass
from benchmarks.pretend_gpu import count
from tests import detectron2_models as d2
from tests.integration.test_yaml import config

BUILDERS = [d2.retinanet, d2.fcos]


class SizesNotGiven(RuntimeError):
    pass


@pytest.fixture
def no_look(monkeypatch):
    """A matcher that has to find out about grids fails."""

    def refuse(*_):
        raise SizesNotGiven

    monkeypatch.setattr(grid_module, "grid_sizes_of", refuse)


class RetinaNetThatLooks(RetinaNet):
    """Its matcher looks for itself: it has a ``forward_training`` of its own."""

    def forward_training(self, *args):
        return super().forward_training(*args)


class FCOSThatLooks(FCOS):
    def forward_training(self, *args):
        return super().forward_training(*args)


def test_the_fixture_sees_a_look(no_look):
    for build, looks in ((d2.retinanet, RetinaNetThatLooks), (d2.fcos, FCOSThatLooks)):
        with pytest.raises(SizesNotGiven):
            d2.losses_of(use_atss(build(model_class=looks)))


@pytest.mark.parametrize("build", BUILDERS)
def test_a_model_gives_the_sizes(build, no_look):
    d2.losses_of(use_atss(build()))


def test_a_lazy_config_gives_the_sizes(no_look):
    model = instantiate(use_atss(d2.zoo_config("fcos").model))
    sizes = []
    model.label_anchors.matcher.match = lambda scene: sizes.append(scene.grid_sizes) or 1 / 0
    batch = [d2.image(d2.BOXES, size=(100, 130))]  # padded to 128 x 160
    with pytest.raises(ZeroDivisionError):
        d2.losses_of(model, batch)
    assert sizes == [[(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]]


@pytest.mark.parametrize(
    ("build", "looks"), [(d2.retinanet, RetinaNetThatLooks), (d2.fcos, FCOSThatLooks)]
)
@pytest.mark.parametrize("topk", [1, 9, 40])
def test_losses_and_gradients_are_the_same_to_the_last_bit(build, looks, topk):
    given, looking = use_atss(build(), topk=topk), use_atss(build(model_class=looks), topk=topk)
    torch.testing.assert_close(d2.losses_of(given), d2.losses_of(looking), rtol=0, atol=0)
    gradients, expected = d2.gradients_of(given), d2.gradients_of(looking)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [(models.FCOS, {}), (models.RETINANET, {"num_anchors": 1}), (models.RETINANET, {})],
)
def test_labels_make_the_host_wait_for_nothing(name, options):
    model = use_atss(models.build(name, num_classes=5, **options).train())
    # Detectron2's losses wait as before: they are no part of this.
    model.losses = lambda anchors, logits, labels, *_: {
        "loss": sum(x.sum() for x in logits) + 0 * torch.stack(labels).sum()
    }
    run, _ = training_pass(model, (96, 128), 2, 3, pretended=True)
    launches, waits = count(run)
    assert launches["topk"] == 1
    assert waits == {}
    del model.forward_training  # the class alone does not tell the sizes
    assert count(run)[1] == {"_to_copy": 1}


# ------------------------------------------------------------- where anchors are no such grids


def expected_labels(model, anchors, batch):
    """By a look at the anchors."""
    label = LabelAnchors(model.label_anchors.matcher, num_classes=d2.NUM_CLASSES)
    return label(anchors, [x["instances"] for x in batch])[0]


def labels_of(model, batch):
    """Labels that a training step finds, and the anchors it finds them for."""
    seen = []
    type(model).losses = lambda self, anchors, logits, labels, *_: seen.append((anchors, labels))
    d2.losses_of(model, batch)
    ((anchors, labels),) = seen
    return anchors, labels


def retinanet_class():
    return type("MyRetinaNet", (RetinaNet,), {})


class ColumnByColumn(DefaultAnchorGenerator):
    def forward(self, features):
        anchors = super().forward(features)
        return [
            Boxes(a.tensor.view(*f.shape[-2:], -1).transpose(0, 1).reshape(-1, 4))
            for a, f in zip(anchors, features, strict=True)
        ]


class WithoutCells(nn.Module):
    """A generator that is no relative of Detectron2's."""

    def __init__(self, inner):
        super().__init__()
        self.inner = [inner]
        self.strides, self.num_anchors = inner.strides, inner.num_anchors

    def forward(self, features):
        return [Boxes(a.tensor.flip(0)) for a in self.inner[0](features)]


def column_by_column():
    return ColumnByColumn(
        sizes=[[4 * s] for s in d2.STRIDES],
        aspect_ratios=[1.0],
        strides=list(d2.STRIDES),
        offset=0.5,
    )


def cells_apart():
    """Three anchors of a location, each at a place of its own."""
    generator = d2.anchor_generator(9)
    for cell, stride in zip(generator.cell_anchors, d2.STRIDES, strict=True):
        cell += stride / 3 * torch.arange(9.0)[:, None]
    return generator


@pytest.mark.parametrize(
    ("make", "num_anchors"),
    [
        (column_by_column, 1),
        (lambda: WithoutCells(d2.anchor_generator(1)), 1),
        (cells_apart, 9),
    ],
)
def test_anchors_on_no_such_grid_are_labeled_as_they_lie(make, num_anchors):
    batch = [d2.image(d2.BOXES), d2.image(d2.BOXES[:1], seed=1)]
    options = {"anchor_generator": make(), "model_class": retinanet_class()}
    model = use_atss(d2.retinanet(num_anchors, **options), topk=4)
    anchors, labels = labels_of(model, batch)
    expected = expected_labels(model, anchors, batch)
    assert torch.equal(torch.stack(labels), torch.stack(expected))
    # As if they were on the grid they would be labeled otherwise.
    sizes = [(8, 12), (4, 6)]
    wrong = model.label_anchors(anchors, [x["instances"] for x in batch], grid_sizes=sizes)[0]
    assert not torch.equal(torch.stack(wrong), torch.stack(expected))


# --------------------------------------------------------------------- nothing of a step remains


def test_labeling_by_hand_after_a_step():
    model = use_atss(d2.fcos())
    d2.losses_of(model)
    for size in ((64, 96), (96, 64), (32, 192)):  # as many anchors, on other grids
        batch = [d2.instances(d2.BOXES, size=size)]
        labels, _ = model.label_anchors(d2.anchors_of(model, size), batch)
        expected, _ = use_atss(d2.fcos()).label_anchors(d2.anchors_of(model, size), batch)
        assert torch.equal(labels[0], expected[0])


def test_another_rule_takes_the_place_of_the_first(no_look):
    model = use_atss(d2.fcos(), topk=3)
    d2.losses_of(use_matcher(model, d2.Recorder()))
    d2.losses_of(use_atss(model, topk=5))
    assert model.label_anchors.matcher.topk == 5
    use_matcher(model, None)
    assert "forward_training" not in vars(model)


def test_a_yaml_model_gives_the_sizes(no_look):
    d2.losses_of(build_model(config()))
